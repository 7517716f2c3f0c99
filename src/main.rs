//! The `t3c` command.
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let tp = a[3].parse().unwrap();
    let sequences: Vec<Vec<i64>> = a[4].split('/').map(|s| s.split(',').map(|x| x.parse().unwrap()).collect()).collect();
    let r = t3c::run::Request { tp: Some(tp), fuse: if a.len() > 5 { t3c::Policy::Never } else { t3c::Policy::Always }, sequences, flat: false, gradients: Some(vec![]), weights: a[2].clone().into() };
    match t3c::run::run_language_model(a[1].as_ref(), &r) { Ok(o) => { t3c::files::write_tensors("/tmp/o.safetensors".as_ref(), &o).unwrap(); println!("{:?}", &o["logits"].to_f32().unwrap()[..8]); }, Err(e) => println!("error: {e}") }
}
