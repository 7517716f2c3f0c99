//! Rewarded-tree reinforcement learning: tools, rollouts, rewards, advantages and the loop.
