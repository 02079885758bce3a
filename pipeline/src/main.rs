fn main() -> std::process::ExitCode {
    tonearm::cli::main()
}
