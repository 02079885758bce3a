//! Besides where libtorch is: which of librdkafka's functions are called by way of ours (`src/kafka/packed.rs`).

#[path = "../scripts/rpath.rs"]
mod rpath;

const OURS: [&str; 6] = [
    "rd_kafka_zstd_decompress",
    "rd_kafka_lz4_decompress",
    "rd_gz_decompress",
    "rd_kafka_snappy_java_uncompress",
    "rd_kafka_snappy_uncompressed_length",
    "rd_kafka_snappy_uncompress",
];

fn main() {
    rpath::main();
    for function in OURS {
        println!("cargo:rustc-link-arg=-Wl,--wrap={function}");
    }
}
