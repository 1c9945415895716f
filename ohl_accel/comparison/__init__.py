"""Is a policy any good? Runs, statistics and the write-up of a paired comparison (`python -m ohl_accel.compare`)."""
