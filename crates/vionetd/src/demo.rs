//! demo
/// x
pub fn run(_a: &crate::cli::DemoArgs) -> Result<(), crate::exit::Stop> {
    Ok(())
}
