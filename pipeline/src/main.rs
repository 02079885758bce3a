use std::process::ExitCode;

fn main() -> ExitCode {
    if !cpu_suffices() {
        eprintln!(
            "tonearm: this CPU has no AVX, which this program was built for; build it with RUSTFLAGS=\"\" to run here"
        );
        return ExitCode::FAILURE;
    }
    tonearm::cli::main()
}

/// Whether the CPU has what the compiler was allowed to use, see `.cargo/config.toml`. Asked of the CPU itself: the
/// standard library takes for granted what the compiler does.
fn cpu_suffices() -> bool {
    #[cfg(all(target_arch = "x86_64", target_feature = "avx"))]
    return raw_cpuid::CpuId::new().get_feature_info().is_some_and(|cpu| cpu.has_avx());
    #[cfg(not(all(target_arch = "x86_64", target_feature = "avx")))]
    true
}
