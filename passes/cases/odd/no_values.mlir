// pass: every
// Functions without arguments or results.
shard.grid @grid(shape = 4)

func.func private @nothing() { return }
func.func @main() {
  call @nothing() : () -> ()
  return
}
