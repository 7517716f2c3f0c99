//! The page of one sub-layer: `page PAGE.html [M N K DEVICES]`.

use t3c_schedule::testing::gemm_reduce_scatter;
use t3c_sim::{Options, System, page, simulate};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("expected the name of a page to write")?;
    let sizes: Vec<u64> = arguments.map(|size| size.parse()).collect::<Result<_, _>>()?;
    let (m, n, k, devices) = match sizes[..] {
        [m, n, k, devices] => (m, n, k, u32::try_from(devices)?),
        _ => (8192, 4256, 2128, 8),
    };
    let options = Options { trace: true, ..Options::default() };
    let report = simulate(&gemm_reduce_scatter(m, n, k, devices), &System::open("t3-80cu")?, &options)?;
    let shown = [page::Shown { value: String::new(), report: &report }];
    std::fs::write(
        path,
        page::simulation(&shown, None, &format!("{m}x{n}x{k} on {devices} devices of t3-80cu")),
    )?;
    Ok(())
}
