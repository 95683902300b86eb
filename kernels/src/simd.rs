//! Loops compiled for the lanes that the machine has, and the exponential that they share.
//!
//! A body is compiled three times: for AVX-512, for AVX2 and for what the program was built for; which one runs is decided
//! at run time. Bodies fuse no multiplication with an addition and sum in [`LANES`] fixed lanes, so that all three give
//! the same bits.

/// Partial sums of a row: as many lanes as the widest machine has.
pub(crate) const LANES: usize = 16;

/// Defines a function whose body is compiled for several widths of lanes.
macro_rules! wide {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl")]
                fn avx512($($arg: $type),*) $(-> $result)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $type),*) $(-> $result)? {
                    body($($arg),*)
                }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the lines above have checked that the machine has these.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the line above has checked that the machine has AVX2.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use wide;

/// 2^x to 2 units in the last place; 0 below -126 and infinite from 127.5 on, where f32 ends. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    // Adding and taking 1.5 x 2^23 rounds to a whole number, whose value is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x + ROUND;
    let f = x - (shifted - ROUND); // in [-0.5, 0.5]
    let p = 1.535_336_2e-4;
    let p = p * f + 1.339_887_4e-3;
    let p = p * f + 9.618_437e-3;
    let p = p * f + 5.550_332_5e-2;
    let p = p * f + 2.402_264_8e-1;
    let p = p * f + 6.931_472e-1;
    let p = p * f + 1.0;
    let whole = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    let power = if x < -126.0 { 0.0 } else { p * whole };
    if x >= 127.5 { f32::INFINITY } else { power }
}

/// 1 / (1 + exp(-x)).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp2(x * -std::f32::consts::LOG2_E))
}

/// d (x sigmoid(x)) / d x.
#[inline(always)]
pub(crate) fn silu_slope(x: f32) -> f32 {
    let open = sigmoid(x);
    open * (1.0 + x * (1.0 - open))
}

/// The sum of lanes, by halves.
#[inline(always)]
pub(crate) fn total(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The sum of `of` each value of a row.
#[inline(always)]
pub(crate) fn sum(row: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (many, tail) = row.as_chunks::<LANES>();
    for values in many {
        for (sum, &value) in lanes.iter_mut().zip(values) {
            *sum += of(value);
        }
    }
    for (sum, &value) in lanes.iter_mut().zip(tail) {
        *sum += of(value);
    }
    total(lanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two_are_within_two_units_of_the_exact_ones() {
        for i in -126_000..127_000 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x).exp2();
            let error = (f64::from(exp2(x)) - exact).abs() / exact;
            assert!(error < 2.4e-7, "{x}: {error}");
        }
    }

    #[test]
    fn powers_end_where_f32_does() {
        assert_eq!(exp2(0.0), 1.0);
        assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2(-1e9), 0.0);
        assert_eq!(exp2(f32::INFINITY), f32::INFINITY);
        assert!(exp2(f32::NAN).is_nan());
    }

    wide! {
        fn squares(x: &[f32]) -> f32 {
            sum(x, |value| value * value)
        }
    }

    #[test]
    fn sums_of_any_length_are_exact_where_f32_is() {
        for count in [0, 1, 15, 16, 17, 40, 1000] {
            let x: Vec<f32> = (0..count).map(|i| (i % 7) as f32).collect();
            let wanted: usize = (0..count).map(|i| (i % 7) * (i % 7)).sum();
            assert_eq!(squares(&x), wanted as f32, "{count}");
        }
    }
}
