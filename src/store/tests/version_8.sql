-- A store as schema version 8 has left it: `.dump` of sqlite3, and the two pragmas that it leaves out.
BEGIN TRANSACTION;
CREATE TABLE command (
         number  INTEGER PRIMARY KEY AUTOINCREMENT, -- its id begins so; none is given twice
         device  TEXT NOT NULL,
         tag     TEXT NOT NULL,        -- and ends so
         put     INTEGER NOT NULL,     -- Unix time in milliseconds
         expires INTEGER NOT NULL,     -- Unix time in milliseconds
         node    TEXT NOT NULL,        -- the gateway that took it
         bytes   INTEGER NOT NULL,
         topic   TEXT NOT NULL,
         payload BLOB NOT NULL
     ) STRICT;
INSERT INTO "command" VALUES(17,'meter-1','0a1b2c3d',1795675789573,4070908800000,'edge-1',153,'set/relay',X'00FF');
CREATE TABLE command_outcome (
         id       TEXT PRIMARY KEY,
         revision INTEGER NOT NULL,    -- how often it was written
         device   TEXT NOT NULL,
         state    TEXT NOT NULL,       -- sent, acknowledged, expired, refused or cancelled
         at       INTEGER NOT NULL,    -- Unix time in milliseconds
         tries    INTEGER NOT NULL,
         node     TEXT NOT NULL,       -- the gateway that tried last
         why      TEXT                 -- it was refused
     ) STRICT, WITHOUT ROWID;
INSERT INTO "command_outcome" VALUES('17-0a1b2c3d',2,'meter-1','sent',1795675789600,2,'edge-1',NULL);
INSERT INTO "command_outcome" VALUES('18-ffffffff',1,'meter-2','refused',4070908800000,1,'edge-1','the message is too long for it');
CREATE TABLE consumer (
         name    TEXT PRIMARY KEY,
         cursor  INTEGER NOT NULL,     -- every event up to this one is acknowledged or was missed
         missed  INTEGER NOT NULL,     -- events that retention dropped before they were acknowledged
         created INTEGER NOT NULL,     -- Unix time in milliseconds
         seen    INTEGER NOT NULL      -- the latest acknowledgement, Unix time in milliseconds
     ) STRICT, WITHOUT ROWID;
CREATE TABLE consumer_ahead (     -- acknowledged beyond the cursor, by one of several readers
         consumer TEXT NOT NULL,
         first    INTEGER NOT NULL,
         last     INTEGER NOT NULL,
         PRIMARY KEY (consumer, first)
     ) STRICT, WITHOUT ROWID;
CREATE TABLE fleet (
         id       INTEGER PRIMARY KEY CHECK (id = 1),
         stream   TEXT NOT NULL,       -- which stream: when it was made
         position INTEGER NOT NULL     -- every message up to this one was taken
     ) STRICT;
CREATE TABLE identity (
         id    INTEGER PRIMARY KEY CHECK (id = 1),
         store TEXT NOT NULL
     ) STRICT;
INSERT INTO "identity" VALUES(1,'0123456789ab');
CREATE TABLE message (                -- what waits in a session or in several
         id         INTEGER PRIMARY KEY,
         uses       INTEGER NOT NULL,      -- in how many
         image      BLOB NOT NULL
     ) STRICT;
CREATE TABLE queue (
         session     INTEGER NOT NULL,
         number      INTEGER NOT NULL,     -- the order in which they are sent
         message     INTEGER,              -- NULL: the device has it, and PUBCOMP is owed
         packet      INTEGER,              -- the packet identifier under which it was sent; NULL: it was not
         delivery    INTEGER NOT NULL,     -- QoS in bits 0 and 1, RETAIN in bit 2
         identifiers BLOB,                 -- Subscription Identifiers, four bytes each
         bytes       INTEGER NOT NULL,
         origin      INTEGER NOT NULL, share TEXT,     -- of QoS 2: which received packet caused it; 0: that is answered
         PRIMARY KEY (session, number)
     ) STRICT, WITHOUT ROWID;
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
CREATE TABLE session (
         key        INTEGER PRIMARY KEY,
         name       TEXT NOT NULL UNIQUE,  -- the device's id
         away_since INTEGER,               -- Unix time in milliseconds; NULL: it is connected, or was when the process ended
         expiry     INTEGER,               -- how long it outlives its connection, in seconds; NULL: for ever
         image      BLOB NOT NULL
     ) STRICT;
CREATE TABLE sink (
         consumer   TEXT PRIMARY KEY,
         is_paused  INTEGER NOT NULL,
         batch_last INTEGER NOT NULL   -- the last event of the batch that was begun latest; 0: none was
     ) STRICT, WITHOUT ROWID;
CREATE TABLE subscription (
         session    INTEGER NOT NULL,
         filter     TEXT NOT NULL,
         options    INTEGER NOT NULL,      -- the options byte of SUBSCRIBE: QoS in bits 0 and 1
         identifier INTEGER NOT NULL,      -- 0: none
         PRIMARY KEY (session, filter)
     ) STRICT, WITHOUT ROWID;
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
     , peer TEXT, identity TEXT, tls TEXT, connected INTEGER, detail TEXT, published INTEGER, properties BLOB, expires INTEGER) STRICT;
CREATE TABLE uplink_state (
         id     INTEGER PRIMARY KEY CHECK (id = 1),
         next   INTEGER NOT NULL,      -- the number that the next event gets: none is given twice
         events INTEGER NOT NULL,      -- how many are held
         bytes  INTEGER NOT NULL       -- and what they take
     , gone INTEGER NOT NULL DEFAULT 0) STRICT;
INSERT INTO "uplink_state" VALUES(1,1,0,0,0);
CREATE INDEX uplink_presence ON uplink (device, seq) WHERE kind <> 2;
CREATE VIEW events AS
         SELECT seq, strftime('%Y-%m-%dT%H:%M:%fZ', at / 1000.0, 'unixepoch') AS at,
                CASE kind WHEN 0 THEN 'connected' WHEN 1 THEN 'disconnected' ELSE 'message' END AS kind,
                device, topic, payload, listener, generation, cause, peer, identity, detail
         FROM uplink;
CREATE VIEW sessions AS
         SELECT key, name, strftime('%Y-%m-%dT%H:%M:%fZ', away_since / 1000.0, 'unixepoch') AS away_since,
                strftime('%Y-%m-%dT%H:%M:%fZ', away_since / 1000.0 + expiry, 'unixepoch') AS expires,
                (SELECT count(*) FROM subscription WHERE session = key) AS subscriptions,
                (SELECT count(*) FROM queue WHERE session = key) AS waiting,
                (SELECT ifnull(sum(bytes), 0) FROM queue WHERE session = key) AS waiting_bytes
         FROM session WHERE hex(name) NOT LIKE '00%';
CREATE INDEX command_device ON command (device, number);
CREATE INDEX command_expires ON command (expires);
CREATE INDEX command_outcome_at ON command_outcome (at);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('command',18);
COMMIT;
PRAGMA application_id=1349872755;
PRAGMA user_version=8;
