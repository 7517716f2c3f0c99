//! The `t3c` command.
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let start = std::time::Instant::now();
    let o = t3c::train::TrainOptions { out: a[3].clone().into(), tp: Some(a[2].parse().unwrap()), seed: a.get(4).map(|x| x.parse().unwrap()), fuse: t3c::Policy::Always, resume: false };
    let r = t3c::train::train(a[1].as_ref(), &o, &mut |e| {
        let s = serde_json::to_string(e).unwrap();
        println!("{:.1}s {}", start.elapsed().as_secs_f64(), &s[..s.len().min(400)]);
        std::ops::ControlFlow::Continue(())
    });
    match r { Ok(t) => println!("{t:?}"), Err(e) => println!("error: {e}") }
}
