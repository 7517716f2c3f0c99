// pass: every
// A grid and nothing on it.
shard.grid @grid(shape = 4)
