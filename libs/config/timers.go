package config

import (
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// timerSlack is by how much the kernel may put off a sleep. Its default is a tenth of it.
const timerSlack = 500 * time.Microsecond

// relaxTimers sets the slack of all threads; those that come later inherit it. While there is work, a thread of Go's
// runtime sleeps for 20 µs, looks whether a system call blocks others, and sleeps again: up to a fifth of what a daemon
// with little work takes. Nothing here needs to be told the time so exactly. For other threads than the first it takes
// CAP_SYS_NICE; without it, and on kernels older than 4.6, all stays as it was.
func relaxTimers() {
	threads, _ := os.ReadDir("/proc/self/task")
	for _, t := range threads {
		_ = os.WriteFile(filepath.Join("/proc", t.Name(), "timerslack_ns"), strconv.AppendInt(nil, int64(timerSlack), 10), 0)
	}
}
