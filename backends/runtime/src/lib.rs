//! Workers, trackers, transports and collectives for running a schedule.
