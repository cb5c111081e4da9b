-- A store as schema version 3 has left it: `.dump` of sqlite3, and the two pragmas that it leaves out.
BEGIN TRANSACTION;
CREATE TABLE uplink (
         seq        INTEGER PRIMARY KEY,
         at         INTEGER NOT NULL,  -- Unix time in milliseconds
         kind       INTEGER NOT NULL,  -- 0 connected, 1 disconnected, 2 message
         device     TEXT NOT NULL,
         topic      TEXT,              -- of a message
         payload    BLOB,              -- of a message
         listener   TEXT,              -- of a presence event, as are the following
         epoch      INTEGER,
         generation INTEGER,
         sequence   INTEGER,
         last_heard INTEGER,           -- Unix time in milliseconds
         cause      TEXT,              -- of a disconnection
         worker     INTEGER NOT NULL
     ) STRICT;
INSERT INTO uplink VALUES(1,1795675789573,0,'meter-1',NULL,NULL,'mqtt',1795675786075,2,1,1795675789475,NULL,0);
INSERT INTO uplink VALUES(2,1795675789615,1,'meter-1',NULL,NULL,'mqtt',1795675786075,2,2,1795675789575,'device_closed',0);
INSERT INTO uplink VALUES(3,1795675789655,0,'meter-1',NULL,NULL,'mqtt',1795675786075,4,3,1795675789575,NULL,0);
INSERT INTO uplink VALUES(4,1795675789677,1,'meter-1',NULL,NULL,'mqtt',1795675786075,4,4,1795675789675,'device_closed',0);
INSERT INTO uplink VALUES(5,1795675789743,0,'pub',NULL,NULL,'mqtt',1795675786075,3,1,1795675789675,NULL,1);
INSERT INTO uplink VALUES(6,1795675789743,2,'pub','site/1/set',X'76616c75652031',NULL,NULL,NULL,NULL,NULL,NULL,1);
INSERT INTO uplink VALUES(7,1795675789757,1,'pub',NULL,NULL,'mqtt',1795675786075,3,2,1795675789675,'device_closed',1);
INSERT INTO uplink VALUES(8,1795675789790,0,'pub',NULL,NULL,'mqtt',1795675786075,5,3,1795675789775,NULL,1);
INSERT INTO uplink VALUES(9,1795675789790,2,'pub','site/1/set',X'76616c75652032',NULL,NULL,NULL,NULL,NULL,NULL,1);
INSERT INTO uplink VALUES(10,1795675789808,1,'pub',NULL,NULL,'mqtt',1795675786075,5,4,1795675789775,'device_closed',1);
INSERT INTO uplink VALUES(11,1795675789833,0,'pub',NULL,NULL,'mqtt',1795675786075,7,5,1795675789775,NULL,1);
INSERT INTO uplink VALUES(12,1795675789834,2,'pub','site/1/set',X'76616c75652033',NULL,NULL,NULL,NULL,NULL,NULL,1);
INSERT INTO uplink VALUES(13,1795675789857,1,'pub',NULL,NULL,'mqtt',1795675786075,7,6,1795675789775,'device_closed',1);
INSERT INTO uplink VALUES(14,1795675789866,0,'pub',NULL,NULL,'mqtt',1795675786075,9,7,1795675789775,NULL,1);
INSERT INTO uplink VALUES(15,1795675789866,2,'pub','site/1/state',X'6f6e',NULL,NULL,NULL,NULL,NULL,NULL,1);
INSERT INTO uplink VALUES(16,1795675789882,1,'pub',NULL,NULL,'mqtt',1795675786075,9,8,1795675789875,'device_closed',1);
INSERT INTO uplink VALUES(17,1795675789929,0,'device-1',NULL,NULL,'raw',1795675786075,11,9,1795675789875,NULL,1);
INSERT INTO uplink VALUES(18,1795675790896,2,'device-1','',X'757020310a757020320a',NULL,NULL,NULL,NULL,NULL,NULL,1);
INSERT INTO uplink VALUES(19,1795675792893,1,'device-1',NULL,NULL,'raw',1795675786075,11,10,1795675790875,'peer_closed',1);
CREATE TABLE uplink_state (
         id     INTEGER PRIMARY KEY CHECK (id = 1),
         next   INTEGER NOT NULL,      -- the number that the next event gets: none is given twice
         events INTEGER NOT NULL,      -- how many are held
         bytes  INTEGER NOT NULL       -- and what they take
     ) STRICT;
INSERT INTO uplink_state VALUES(1,20,19,1218);
CREATE TABLE consumer (
         name    TEXT PRIMARY KEY,
         cursor  INTEGER NOT NULL,     -- every event up to this one is acknowledged or was missed
         missed  INTEGER NOT NULL,     -- events that retention dropped before they were acknowledged
         created INTEGER NOT NULL,     -- Unix time in milliseconds
         seen    INTEGER NOT NULL      -- the latest acknowledgement, Unix time in milliseconds
     ) STRICT, WITHOUT ROWID;
INSERT INTO consumer VALUES('backend',2,0,1795675792958,1795675793026);
CREATE TABLE consumer_ahead (     -- acknowledged beyond the cursor, by one of several readers
         consumer TEXT NOT NULL,
         first    INTEGER NOT NULL,
         last     INTEGER NOT NULL,
         PRIMARY KEY (consumer, first)
     ) STRICT, WITHOUT ROWID;
CREATE TABLE sink (
         consumer   TEXT PRIMARY KEY,
         is_paused  INTEGER NOT NULL,
         batch_last INTEGER NOT NULL   -- the last event of the batch that was begun latest; 0: none was
     ) STRICT, WITHOUT ROWID;
CREATE TABLE identity (
         id    INTEGER PRIMARY KEY CHECK (id = 1),
         store TEXT NOT NULL
     ) STRICT;
INSERT INTO identity VALUES(1,'11f480c69963');
CREATE TABLE session (
         key        INTEGER PRIMARY KEY,
         name       TEXT NOT NULL UNIQUE,  -- the device's id
         away_since INTEGER,               -- Unix time in milliseconds; NULL: it is connected, or was when the process ended
         expiry     INTEGER,               -- how long it outlives its connection, in seconds; NULL: for ever
         image      BLOB NOT NULL
     ) STRICT;
INSERT INTO session VALUES(2,'meter-1',1795675789677,604800,X'48010000000000000002076d657465722d3105046d717474003c00093a800014ffffffff000001000001a2169e196d000000');
CREATE TABLE subscription (
         session    INTEGER NOT NULL,
         filter     TEXT NOT NULL,
         options    INTEGER NOT NULL,      -- the options byte of SUBSCRIBE: QoS in bits 0 and 1
         identifier INTEGER NOT NULL,      -- 0: none
         PRIMARY KEY (session, filter)
     ) STRICT, WITHOUT ROWID;
INSERT INTO subscription VALUES(2,'$share/g/fleet/+',1,0);
INSERT INTO subscription VALUES(2,'site/1/#',2,0);
CREATE TABLE message (                -- what waits in a session or in several
         id         INTEGER PRIMARY KEY,
         uses       INTEGER NOT NULL,      -- in how many
         image      BLOB NOT NULL
     ) STRICT;
INSERT INTO message VALUES(1,1,X'500100010a736974652f312f736574072600016b0001760776616c75652031');
INSERT INTO message VALUES(2,1,X'500100010a736974652f312f736574072600016b0001760776616c75652032');
INSERT INTO message VALUES(3,1,X'500100010a736974652f312f736574072600016b0001760776616c75652033');
INSERT INTO message VALUES(4,1,X'500100060c736974652f312f737461746500026f6e');
CREATE TABLE queue (
         session     INTEGER NOT NULL,
         number      INTEGER NOT NULL,     -- the order in which they are sent
         message     INTEGER,              -- NULL: the device has it, and PUBCOMP is owed
         packet      INTEGER,              -- the packet identifier under which it was sent; NULL: it was not
         delivery    INTEGER NOT NULL,     -- QoS in bits 0 and 1, RETAIN in bit 2
         identifiers BLOB,                 -- Subscription Identifiers, four bytes each
         bytes       INTEGER NOT NULL,
         origin      INTEGER NOT NULL,     -- of QoS 2: which received packet caused it; 0: that is answered
         PRIMARY KEY (session, number)
     ) STRICT, WITHOUT ROWID;
INSERT INTO queue VALUES(2,1,1,NULL,1,NULL,24,0);
INSERT INTO queue VALUES(2,2,2,NULL,1,NULL,24,0);
INSERT INTO queue VALUES(2,3,3,NULL,1,NULL,24,0);
INSERT INTO queue VALUES(2,4,4,NULL,2,NULL,14,0);
CREATE TABLE received (               -- packet identifiers of QoS 2 of which PUBREL is owed
         session INTEGER NOT NULL,
         packet  INTEGER NOT NULL,
         origin  INTEGER NOT NULL,         -- 0: it is answered, or may be
         PRIMARY KEY (session, packet)
     ) STRICT, WITHOUT ROWID;
CREATE TABLE retained (
         topic   TEXT PRIMARY KEY,
         expires INTEGER,                  -- Unix time in milliseconds
         bytes   INTEGER NOT NULL,
         image   BLOB NOT NULL
     ) STRICT, WITHOUT ROWID;
INSERT INTO retained VALUES('site/1/state',NULL,14,X'500100060c736974652f312f737461746500026f6e');
CREATE INDEX uplink_presence ON uplink (device, seq) WHERE kind <> 2;
CREATE VIEW events AS
         SELECT seq, strftime('%Y-%m-%dT%H:%M:%fZ', at / 1000.0, 'unixepoch') AS at,
                CASE kind WHEN 0 THEN 'connected' WHEN 1 THEN 'disconnected' ELSE 'message' END AS kind,
                device, topic, payload, listener, generation, cause
         FROM uplink;
CREATE VIEW sessions AS
         SELECT key, name, strftime('%Y-%m-%dT%H:%M:%fZ', away_since / 1000.0, 'unixepoch') AS away_since,
                strftime('%Y-%m-%dT%H:%M:%fZ', away_since / 1000.0 + expiry, 'unixepoch') AS expires,
                (SELECT count(*) FROM subscription WHERE session = key) AS subscriptions,
                (SELECT count(*) FROM queue WHERE session = key) AS waiting,
                (SELECT ifnull(sum(bytes), 0) FROM queue WHERE session = key) AS waiting_bytes
         FROM session;
PRAGMA application_id = 1349872755;
PRAGMA user_version = 3;
COMMIT;
