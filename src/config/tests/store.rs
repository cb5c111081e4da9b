//! `[store]`: who may have how much of it.

use super::*;

#[test]
fn shares_are_bounded_elsewhere_and_it_is_said_when_they_do_not_fit() {
    let shares = |text: &str| {
        let loaded = loaded(text);
        (loaded.config.store_shares(), loaded.warnings)
    };
    let native_alone =
        StoreShares { uplink: 1 << 30, sessions: 0, one_session: 0, pool: 0, retained: 0, commands: 256 << 20 };
    assert_eq!(shares(&native("")), (Some(native_alone), Vec::new()));
    let limits = "[limits]\npool_bytes = 67108864\nsession_bytes = 1000000\nretained_bytes = 16777216\n";
    let of_mqtt = |top: &str| shares(&format!("{limits}{top}{}{}", native(""), third("")));
    let expected = StoreShares {
        uplink: 64 << 20,
        sessions: 8 << 20,
        one_session: 1_000_000,
        pool: 32 << 20,
        retained: 16 << 20,
        commands: 4 << 20,
    };
    let uplink = "[uplink]\nretention_bytes = 67108864\n";
    // 124 MiB in all: they fit to the byte, and are warned of below that.
    assert_eq!(
        of_mqtt(&format!("[store]\nbytes = 130023424\nsessions_bytes = 8388608\ncommands_bytes = 4194304\n{uplink}")),
        (Some(expected), Vec::new())
    );
    let (same, warnings) =
        of_mqtt(&format!("[store]\nbytes = 130023423\nsessions_bytes = 8388608\ncommands_bytes = 4194304\n{uplink}"));
    assert_eq!((same, warnings.len()), (Some(expected), 1));
    assert!(
        warnings[0].starts_with("store.bytes: ") && warnings[0].contains("write at least 130023424"),
        "{warnings:?}"
    );
    assert_eq!(of_mqtt("[store]\ndurability = \"memory\"\n"), (None, Vec::new()));
}
