//! RFC 8448 section 3, "Simple 1-RTT Handshake": everything in it that happens after the handshake.

use super::*;

const CLIENT_SECRET: &str = "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5";
const SERVER_SECRET: &str = "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643";
const CLIENT_KEY: &str = "17422dda596ed5d9acd890e3c63f5051";
const CLIENT_IV: &str = "5b78923dee08579033e523d9";
const SERVER_KEY: &str = "9f02283b6c9c07efc26bb9f2ac92e356";
const SERVER_IV: &str = "cf782b88dd83549aadf1e984";

const SERVER_TICKET: &str = "17030300de3a6b8f90414a97d6959c3487680de5134a2b240e6cffac116e95d41d
    6af8f6b580dcf3d11d63c758db289a015940252f55713e061dc13e078891a38efbcf5753ad8ef170ad3c7353d16d9da773b9ca7f2b9fa1b6
    c0d4a3d03f75e09c30ba1e62972ac46f75f7b981be63439b2999ce13064615139891d5e4c5b406f16e3fc181a77ca475840025db2f0a77f8
    1b5ab05b94c01346755f69232c86519d86cbeeac87aac347d143f9605d64f650db4d023e70e952ca49fe5137121c74bc2697687e248746d6
    df353005f3bce18696129c8153556b3b6c6779b37bf15985684f";
const CLIENT_DATA: &str = "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd5
    4a9a20441e2b62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4";
const SERVER_DATA: &str = "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc60
    2dcb501a59a8fcc49c4bf2e5f0a21c0047c2abf332540dd032e167c2955d";
const CLIENT_ALERT: &str = "1703030013c9872760655666b74d7ff1153efd6db6d0b0e3";
const SERVER_ALERT: &str = "1703030013b58fd67166ebf599d24720cfbe7efa7a8864a9";

fn layer(role: Role) -> RecordLayer {
    let direction = |secret: &str| {
        let (secret, mut key, mut iv) = (hex(secret), vec![0; 16], [0; 12]);
        derive(Suite::Tls13Aes128GcmSha256, &secret, &mut key, &mut iv);
        (secret, key, iv)
    };
    let (client, server) = (direction(CLIENT_SECRET), direction(SERVER_SECRET));
    let (tx, rx) = if role == Role::Client { (client, server) } else { (server, client) };
    let tx = DirectionSecrets { secret: &tx.0, key: &tx.1, iv: &tx.2, sequence: 0 };
    let rx = DirectionSecrets { secret: &rx.0, key: &rx.1, iv: &rx.2, sequence: 0 };
    RecordLayer::new(role, Suite::Tls13Aes128GcmSha256, &tx, &rx)
}

#[test]
fn keys_follow_from_the_traffic_secrets() {
    for (secret, expected_key, expected_iv) in
        [(CLIENT_SECRET, CLIENT_KEY, CLIENT_IV), (SERVER_SECRET, SERVER_KEY, SERVER_IV)]
    {
        let (mut key, mut iv) = ([0; 16], [0; 12]);
        derive(Suite::Tls13Aes128GcmSha256, &hex(secret), &mut key, &mut iv);
        assert_eq!((&key[..], &iv[..]), (&hex(expected_key)[..], &hex(expected_iv)[..]));
    }
}

#[test]
fn the_client_reads_and_writes_what_the_trace_says() {
    let mut client = layer(Role::Client);
    let payload: Vec<u8> = (0..50).collect();
    assert_eq!(open(&mut client, &hex(SERVER_TICKET)), [Event::Handled(Handled::SessionTickets)]);
    assert_eq!(data(&mut client, &payload), hex(CLIENT_DATA));
    assert_eq!(open(&mut client, &hex(SERVER_DATA)), [Event::Data(payload)]);
    let mut out = Vec::new();
    client.burst().close_notify(&mut out);
    assert_eq!(out, hex(CLIENT_ALERT));
    assert_eq!(open(&mut client, &hex(SERVER_ALERT)), [Event::CloseNotify]);
}

#[test]
fn the_server_reads_and_writes_what_the_trace_says() {
    let mut server = layer(Role::Server);
    let payload: Vec<u8> = (0..50).collect();
    let ticket = match &open(&mut layer(Role::Client), &hex(SERVER_TICKET))[..] {
        [Event::Handled(Handled::SessionTickets)] => {
            let mut bytes = hex(SERVER_TICKET);
            let client = layer(Role::Client);
            let key = client.rx.aead(client.suite);
            tls13::open(&key, &client.rx, &mut bytes).expect("it has just been opened").1.to_vec()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(record(&mut server, ContentType::Handshake, &ticket), hex(SERVER_TICKET));
    assert_eq!(open(&mut server, &hex(CLIENT_DATA)), [Event::Data(payload.clone())]);
    assert_eq!(data(&mut server, &payload), hex(SERVER_DATA));
    assert_eq!(open(&mut server, &hex(CLIENT_ALERT)), [Event::CloseNotify]);
    let mut out = Vec::new();
    server.burst().close_notify(&mut out);
    assert_eq!(out, hex(SERVER_ALERT));
}
