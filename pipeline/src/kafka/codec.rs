//! Compressed bytes of batches, unpacked as they are read.

use std::io::{self, BufRead, Read};

use super::snappy::Snappy;

/// How a batch is compressed; the numbers are those of its attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Gzip = 1,
    Snappy = 2,
    Lz4 = 3,
    Zstd = 4,
}

impl Codec {
    pub const ALL: [Self; 4] = [Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    pub fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| *codec as u8 == number)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// Unpacks `packed`, holding no more than its window.
    ///
    /// # Errors
    /// There is no memory for a decoder.
    pub fn reader<'p>(self, packed: impl BufRead + Send + 'p) -> io::Result<Box<dyn Read + Send + 'p>> {
        Ok(match self {
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
            Self::Snappy => Box::new(Snappy::new(packed)),
            Self::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(packed)),
            // Frames with windows of more than 128 MiB are refused, which is zstd's default.
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(packed)?),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use super::*;

    /// `bytes` as producers pack them.
    pub fn pack(codec: Codec, bytes: &[u8]) -> Vec<u8> {
        match codec {
            Codec::Gzip => {
                let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                packer.write_all(bytes).unwrap();
                packer.finish().unwrap()
            }
            Codec::Snappy => snap::raw::Encoder::new().compress_vec(bytes).unwrap(),
            Codec::Lz4 => {
                let mut packer = lz4_flex::frame::FrameEncoder::new(Vec::new());
                packer.write_all(bytes).unwrap();
                packer.finish().unwrap()
            }
            Codec::Zstd => zstd::stream::encode_all(bytes, 3).unwrap(),
        }
    }

    #[test]
    fn every_codec_gives_back_what_was_packed() {
        let mut bytes = vec![0; 300_000];
        bytes.extend((0..500_000_u32).map(|n| (n.wrapping_mul(n) >> 7) as u8));
        for codec in Codec::ALL {
            let packed = pack(codec, &bytes);
            let mut unpacked = Vec::new();
            codec.reader(&packed[..]).unwrap().read_to_end(&mut unpacked).unwrap();
            assert!(unpacked == bytes, "{}", codec.name());
            assert_eq!(Codec::of(codec as u8), Some(codec));
        }
    }

    #[test]
    fn what_no_codec_packed_is_an_error() {
        for codec in Codec::ALL {
            let mut unpacked = Vec::new();
            assert!(codec.reader(&[0xff; 100][..]).unwrap().read_to_end(&mut unpacked).is_err(), "{}", codec.name());
        }
    }
}
