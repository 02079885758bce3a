//! Compiled graphs against loops that say what an operation is.

use std::f64::consts::TAU;

use proptest::prelude::*;

use super::{
    Precision,
    constant::tests::constant,
    element::{Bf16, Element},
    graph::{Convolution, Graph, NodeId, Operation, Padding, Pointwise, Pool, Reduction},
    inverse::{Inverse, Pair, Row, Scratch},
    kernels::{LANES, Lanes, OnLanes, Simd, Walk, tile},
    panel::MOST_PIXELS,
    passes,
    plan::Plan,
    view::View,
};

/// Numbers without a pattern, −1..=1.
fn noise(seed: usize, count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i + 31 * seed + 1) * 7919 % 2017) as f32 / 1008.0 - 1.0).collect()
}

/// All instruction sets of this CPU that float32 has loops for.
fn float32_sets() -> Vec<Simd> {
    [Some(Simd::PORTABLE), Simd::avx2(), Simd::avx512(), Simd::avx512_bf16()].into_iter().flatten().collect()
}

fn tile_is_the_same<T: Element>(simd: Simd, groups: usize) {
    for pixels in 1..=simd.pixels(groups) {
        for (runs, steps) in [(1, 1), (3, 5), (2, 8), (0, 4)] {
            let walk = Walk { pixel: 3, run: 7, runs, steps, w_run: steps * T::PER_STEP * groups * LANES };
            let convert = |values: Vec<f32>| -> Vec<T> { values.into_iter().map(T::from_f32).collect() };
            let x = convert(noise(1, 3 * pixels + 7 * runs + T::PER_STEP * steps));
            let w = convert(noise(2, runs * walk.w_run));
            for larger in [false, true] {
                let mut expected = noise(4, pixels * groups * LANES);
                let mut found = expected.clone();
                tile(Simd::PORTABLE, [pixels, groups], [&x, &w], walk, larger, &mut expected);
                tile(simd, [pixels, groups], [&x, &w], walk, larger, &mut found);
                for (found, expected) in found.iter().zip(&expected) {
                    assert!(
                        (found - expected).abs() < 1e-4,
                        "{simd:?}, {pixels} × {groups}, {walk:?}: {found} for {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn every_loop_multiplies_as_the_obvious_one() {
    assert!(Simd::PORTABLE.pixels(1) <= MOST_PIXELS);
    for simd in [Simd::avx512(), Simd::avx512_bf16()].into_iter().flatten() {
        (1..=3).for_each(|groups| tile_is_the_same::<f32>(simd, groups));
    }
    if let Some(simd) = Simd::avx2() {
        tile_is_the_same::<f32>(simd, 1);
    }
    if let Some(simd) = Simd::avx512_bf16() {
        (1..=3).for_each(|groups| tile_is_the_same::<Bf16>(simd, groups));
    }
}

#[test]
#[should_panic(expected = "x.len()")]
fn a_tile_that_reads_beyond_its_image_is_refused() {
    let walk = Walk { pixel: 1, run: 0, runs: 1, steps: 4, w_run: 0 };
    tile::<f32>(Simd::float32().expect("AVX2"), [2, 1], [&[0.0; 4], &[0.0; 64]], walk, false, &mut [0.0; 32]);
}

#[test]
fn bfloat16_rounds_to_the_nearest_even() {
    for (value, rounded) in
        [(1.0, 1.0), (1.0 + 1.0 / 256.0, 1.0), (1.0 + 3.0 / 256.0, 1.0 + 4.0 / 256.0), (-0.1, -0.100_097_656)]
    {
        assert_eq!(Bf16::from_f32(value).to_f32(), rounded);
    }
}

struct Transform<'a>(&'a Inverse, &'a [Pair], usize, &'a mut [Row]);

impl OnLanes for Transform<'_> {
    fn run<V: Lanes>(self) {
        let Self(inverse, bins, needed, signal) = self;
        inverse.run::<V>(bins, signal, needed, &mut Scratch::new());
    }
}

#[test]
fn the_inverse_transform_is_the_sum_of_its_definition() {
    let mut lengths: Vec<usize> = (1..400).flat_map(Inverse::lengths).collect();
    lengths.sort_unstable();
    lengths.dedup();
    assert_eq!(lengths, [16, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320]);
    for length in lengths {
        let inverse = Inverse::new(length);
        let values = noise(20, inverse.bins() * 2 * LANES);
        let bins: Vec<Pair> = values.as_chunks::<LANES>().0.as_chunks::<2>().0.to_vec();
        let expected = |n: usize, lane: usize| {
            let bin = |(k, [re, im]): (usize, &Pair)| {
                let (sin, cos) = (TAU * (k * n % length) as f64 / length as f64).sin_cos();
                // The first and the last are of real signals.
                let im = if k == 0 || k == length / 2 { 0.0 } else { im[lane] };
                f64::from(re[lane]) * cos - f64::from(im) * sin
            };
            bins.iter().enumerate().map(bin).sum::<f64>() as f32
        };
        for simd in float32_sets() {
            for needed in [length, length / 2 + 1, length / 3, 1] {
                let mut signal = vec![[f32::NAN; LANES]; length];
                simd.on_lanes(Transform(&inverse, &bins, needed, &mut signal));
                for (n, row) in signal.iter().enumerate().take(needed) {
                    for (lane, &found) in row.iter().enumerate() {
                        let off = (found - expected(n, lane)).abs();
                        assert!(off < 2e-5, "{simd:?}, length {length}, value {n}: off by {off}");
                    }
                }
            }
        }
    }
}

/// One convolution and what follows it.
#[derive(Clone, Debug)]
struct Case {
    /// Channels, rows, columns.
    image: [usize; 3],
    out: usize,
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: Padding,
    pool: Pool,
}

impl Case {
    fn graph(&self) -> (Graph, NodeId) {
        let [channels, rows, columns] = self.image;
        let mut graph = Graph::new([channels * rows, columns]);
        let image = graph.reshape(0, vec![1, channels, rows, columns]).unwrap();
        // Channels side by side, as between layers.
        let image = graph.push(Operation::Pointwise(Pointwise::Relu), vec![image]).unwrap();
        let image = graph.push(Operation::Pad(self.padding), vec![image]).unwrap();
        let shape = vec![self.out, channels, self.kernel[0], self.kernel[1]];
        let count = shape.iter().product();
        let scale = (count as f32 / self.out as f32).sqrt().recip();
        let values: Vec<f32> = noise(5, count).into_iter().map(|value| value * scale).collect();
        let convolution = Convolution {
            weight: constant(&values, View::row_major(0, &shape)),
            stride: self.stride,
            padding: Padding::default(),
            pool: Pool::NONE,
            then: vec![],
        };
        let mut last = graph.push(Operation::Convolution(convolution), vec![image]).unwrap();
        // Half of the scales are negative.
        let affine = |seed| Pointwise::Affine { scale: noise(seed, self.out), shift: noise(seed + 1, self.out) };
        for pointwise in [affine(6), Pointwise::Relu, affine(8)] {
            last = graph.push(Operation::Pointwise(pointwise), vec![last]).unwrap();
        }
        last = graph.push(Operation::MaxPool(self.pool), vec![last]).unwrap();
        graph.output = last;
        (graph, last)
    }

    /// The loops of the definition.
    fn obvious(&self, window: &[f32], weight: &[f32]) -> Vec<f32> {
        let [channels, rows, columns] = self.image;
        let at = |c: usize, r: usize, q: usize| {
            let (r, q) = (r.wrapping_sub(self.padding.before[0]), q.wrapping_sub(self.padding.before[1]));
            if r < rows && q < columns { f64::from(window[(c * rows + r) * columns + q].max(0.0)) } else { 0.0 }
        };
        let [kernel_rows, kernel_columns] = self.kernel;
        let (scales, shifts) = ([noise(6, self.out), noise(8, self.out)], [noise(7, self.out), noise(9, self.out)]);
        let value = |o: usize, r: usize, q: usize| {
            let mut sum = 0.0;
            for c in 0..channels {
                for i in 0..kernel_rows {
                    for j in 0..kernel_columns {
                        let weight = weight[((o * channels + c) * kernel_rows + i) * kernel_columns + j];
                        sum += at(c, r * self.stride[0] + i, q * self.stride[1] + j) * f64::from(weight);
                    }
                }
            }
            let sum = (sum * f64::from(scales[0][o]) + f64::from(shifts[0][o])).max(0.0);
            (sum * f64::from(scales[1][o]) + f64::from(shifts[1][o])) as f32
        };
        let places = |axis: usize| {
            let padded = self.image[1 + axis] + self.padding.before[axis] + self.padding.after[axis];
            let length = (padded - self.kernel[axis]) / self.stride[axis] + 1;
            (length - self.pool.window[axis]) / self.pool.stride[axis] + 1
        };
        let mut out = Vec::new();
        for o in 0..self.out {
            for r in 0..places(0) {
                for q in 0..places(1) {
                    let inner = (0..self.pool.window[0]).flat_map(|i| (0..self.pool.window[1]).map(move |j| (i, j)));
                    let values = inner.map(|(i, j)| value(o, r * self.pool.stride[0] + i, q * self.pool.stride[1] + j));
                    out.push(values.fold(f32::NEG_INFINITY, f32::max));
                }
            }
        }
        out
    }

    fn check(&self) {
        let (graph, _) = self.graph();
        let window: Vec<f32> = noise(10, self.image.iter().product()).iter().map(|value| value + 0.3).collect();
        let weight = graph.nodes.iter().find_map(|node| match &node.operation {
            Operation::Convolution(convolution) => Some(convolution.weight.values().unwrap()),
            _ => None,
        });
        let expected = self.obvious(&window, &weight.unwrap());
        let optimised = passes::optimise(&graph).unwrap();
        let check = |graph: &Graph, simd, precision, tolerance| {
            let plan = Plan::new(graph, simd, precision).unwrap();
            let mut scratch = plan.scratch();
            // The second run works in what the first one left.
            plan.run(&noise(11, window.len()), &mut scratch);
            let found = plan.run(&window, &mut scratch);
            assert_eq!(found.len(), expected.len());
            let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < tolerance, "{simd:?} {precision}: off by {worst} in {self:?}");
        };
        for simd in float32_sets() {
            check(&optimised, simd, Precision::Float32, 1e-5);
        }
        for simd in [Some(Simd::PORTABLE), Simd::avx512_bf16()].into_iter().flatten() {
            check(&optimised, simd, Precision::Bfloat16, 3e-2);
        }
    }
}

fn axis() -> impl Strategy<Value = [usize; 7]> {
    // Kernel, stride, zeros before and after, window and stride of the maximum, and what the image has more than it
    // must.
    (1..6_usize, 1..3_usize, 0..4_usize, 0..4_usize, 1..5_usize, 1..4_usize, 0..20_usize).prop_map(Into::into)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn convolutions_of_any_form_are_the_loops_of_their_definition(
        rows in axis(), columns in axis(), channels in prop_oneof![Just(1_usize), 2..5_usize, Just(16)], out in 1..70_usize,
    ) {
        let pick = |i: usize| [rows[i], columns[i]];
        let length = |[kernel, stride, before, after, window, _, more]: [usize; 7]| {
            (kernel + (window - 1) * stride + more).saturating_sub(before + after).max(1)
        };
        let case = Case {
            image: [channels, length(rows), length(columns)],
            out,
            kernel: pick(0),
            stride: pick(1),
            padding: Padding { before: pick(2), after: pick(3) },
            pool: Pool { window: pick(4), stride: pick(5) },
        };
        case.check();
    }

    #[test]
    fn winograd_is_the_loops_of_its_definition(
        rows in 4..14_usize, columns in 4..14_usize, inputs in 1..3_usize, out in 1..70_usize, pool in prop_oneof![Just(1_usize), Just(2), Just(4)],
    ) {
        let case = Case {
            image: [inputs * LANES, rows, columns],
            out,
            kernel: [3, 3],
            stride: [1, 1],
            padding: Padding { before: [1, 1], after: [1, 1] },
            pool: Pool { window: [pool, pool], stride: [pool, pool] },
        };
        case.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn one_channel_is_the_loops_of_its_definition(
        taps in 7..40_usize, across in prop_oneof![Just(1_usize), 1..40_usize], before in 0..20_usize, after in 0..20_usize, beside in 0..3_usize,
        more in 0..30_usize, window in 1..14_usize, step in 1..3_usize, out in 1..70_usize, turned in any::<bool>(),
    ) {
        let turn = |[a, b]: [usize; 2]| if turned { [b, a] } else { [a, b] };
        let across_image = (across + (window - 1) * step + more % 3).saturating_sub(2 * beside).max(1);
        let [rows, columns] = turn([(taps + more).saturating_sub(before + after).max(1), across_image]);
        let case = Case {
            image: [1, rows, columns],
            out,
            kernel: turn([taps, across]),
            stride: turn([1, step]),
            padding: Padding { before: turn([before, beside]), after: turn([after, beside]) },
            pool: Pool { window: turn([1, window]), stride: turn([1, 1 + window % 2]) },
        };
        case.check();
    }
}

#[test]
fn long_kernels_over_one_channel_are_the_loops_of_their_definition() {
    for (kernel, before, after) in
        [([7, 9], [3, 0], [3, 0]), ([32, 1], [15, 0], [16, 0]), ([5, 24], [2, 0], [2, 0]), ([80, 3], [60, 0], [70, 0])]
    {
        let (padding, window) = (Padding { before, after }, [1, 25 - kernel[1]]);
        let pool = Pool { window, stride: [1, 1] };
        Case { image: [1, 40, 24], out: 51, kernel, stride: [1, 1], padding, pool }.check();
    }
}

#[test]
fn a_steady_image_is_exact_in_bfloat16() {
    for (kernel, before, after, step) in [
        ([7, 9], [3, 0], [3, 0], 1),
        ([9, 23], [4, 0], [4, 0], 1),
        ([7, 24], [3, 0], [3, 0], 1),
        ([32, 1], [15, 0], [16, 0], 1),
        ([128, 1], [63, 0], [64, 0], 2),
        ([128, 1], [63, 0], [64, 0], 1),
    ] {
        let pool = Pool { window: [1, ((24 - kernel[1]) / step + 1).min(16)], stride: [1, 1] };
        let padding = Padding { before, after };
        let case = Case { image: [1, 40, 24], out: 20, kernel, stride: [1, step], padding, pool };
        let (graph, _) = case.graph();
        let graph = passes::optimise(&graph).unwrap();
        let row = noise(12, 24);
        let window: Vec<f32> = (0..40).flat_map(|_| row.clone()).collect();
        let run = |simd, precision| {
            let plan = Plan::new(&graph, simd, precision).unwrap();
            plan.run(&window, &mut plan.scratch())
        };
        let exact = run(Simd::PORTABLE, Precision::Float32);
        for simd in [Some(Simd::PORTABLE), Simd::avx512_bf16()].into_iter().flatten() {
            let found = run(simd, Precision::Bfloat16);
            let worst = found.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5, "{simd:?}: off by {worst} with a kernel of {kernel:?} every {step} bands");
        }
    }
}

#[test]
fn tensors_keep_their_values_under_other_shapes_and_places() {
    // Two branches, joined twice, reduced over time, interleaved: what musicnn does between its layers.
    let mut graph = Graph::new([5, 4]);
    let bands = graph.push(Operation::Permute(vec![0, 2, 1]), vec![0]).unwrap();
    let relu = graph.push(Operation::Pointwise(Pointwise::Relu), vec![bands]).unwrap();
    let sum = graph.push(Operation::Add, vec![bands, relu]).unwrap();
    let inner = graph.push(Operation::Concatenate(1), vec![relu, sum]).unwrap();
    let joined = graph.push(Operation::Concatenate(1), vec![inner, bands, relu]).unwrap();
    let mut parts = Vec::new();
    for reduction in [Reduction::Max, Reduction::Mean] {
        parts.push(graph.push(Operation::Reduce(reduction, 2), vec![joined]).unwrap());
    }
    let pairs = graph.push(Operation::Concatenate(2), parts).unwrap();
    graph.output = graph.reshape(pairs, vec![1, 32]).unwrap();

    let window = noise(13, 20);
    let of = |f: &dyn Fn(f32) -> f32| -> Vec<f32> {
        let band = |b: usize| (0..5).map(move |t| t * 4 + b);
        (0..4)
            .flat_map(|b| {
                let values: Vec<f32> = band(b).map(|at| f(window[at])).collect();
                [values.iter().copied().fold(f32::MIN, f32::max), values.iter().sum::<f32>() / 5.0]
            })
            .collect()
    };
    let relu = |x: f32| x.max(0.0);
    let expected = [of(&relu), of(&|x| x + relu(x)), of(&|x| x), of(&relu)].concat();
    let plan = Plan::new(&passes::optimise(&graph).unwrap(), Simd::PORTABLE, Precision::Float32).unwrap();
    let found = plan.run(&window, &mut plan.scratch());
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
    }
}
