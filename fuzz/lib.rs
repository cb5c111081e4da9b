//! What is under test, taken by its path instead of through the package: so nothing else of the gateway is built again
//! with instrumentation. The codecs need nothing from outside, and a run of them begins within seconds; images come
//! with the feature `image`, the rest of the data plane with the feature `gateway`.

#[path = "../src/codec/mod.rs"]
pub mod codec;
#[path = "../src/wire.rs"]
pub mod wire;

#[cfg(feature = "image")]
#[path = "../src/image/mod.rs"]
pub mod image;

#[cfg(feature = "gateway")]
#[path = "../src/config/mod.rs"]
pub mod config;
#[cfg(feature = "gateway")]
#[path = "../src/connection/mod.rs"]
pub mod connection;
#[cfg(feature = "gateway")]
#[path = "../src/devices.rs"]
pub mod devices;
#[cfg(feature = "gateway")]
#[path = "../src/link/mod.rs"]
pub mod link;
#[cfg(feature = "gateway")]
#[path = "../src/metrics/mod.rs"]
pub mod metrics;
#[cfg(feature = "gateway")]
#[path = "../src/network.rs"]
pub mod network;
#[cfg(feature = "gateway")]
#[path = "../src/pool.rs"]
pub mod pool;
#[cfg(feature = "gateway")]
#[path = "../src/broker/mod.rs"]
pub mod broker;
#[cfg(feature = "gateway")]
#[path = "../src/shard/mod.rs"]
pub mod shard;
#[cfg(feature = "gateway")]
#[path = "../src/slot.rs"]
pub mod slot;
#[cfg(feature = "gateway")]
#[path = "../src/time.rs"]
pub mod time;
#[cfg(feature = "gateway")]
#[path = "../src/tls/mod.rs"]
pub mod tls;
#[cfg(feature = "gateway")]
#[path = "../src/turn/mod.rs"]
pub mod turn;
#[cfg(feature = "gateway")]
#[path = "../src/wheel/mod.rs"]
pub mod wheel;
#[cfg(feature = "gateway")]
#[path = "../src/whole_file.rs"]
pub mod whole_file;
