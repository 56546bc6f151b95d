package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelson/keelson/deploy/config"
)

// Backoff is the pause before the next start of a service that ran for ran and has
// ended failures times in a row, itself included.
func Backoff(failures int, ran time.Duration) (pause time.Duration, failuresNow int) {
	const first, most = 100 * time.Millisecond, 10 * time.Second
	if ran >= time.Minute {
		failures = 1
	}
	pause = most
	if failures < 8 {
		pause = min(most, first<<(max(failures, 1)-1))
	}
	return pause, failures
}

// process is a running service. ended is closed once it is gone; how then says how.
type process struct {
	pid   int
	start uint64 // clock ticks after boot, from /proc/PID/stat
	began time.Time
	ended chan struct{}
	how   string
}

// spawn starts the service and records it in its pid file.
func spawn(sv config.Service, dir, notify string) (*process, error) {
	if err := os.MkdirAll(filepath.Dir(sv.LogFile), 0o755); err != nil {
		return nil, err
	}
	out, err := os.OpenFile(sv.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(sv.Command[0], sv.Command[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Dir = "/"
	cmd.Env = append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "NOTIFY_SOCKET=" + notify,
	}, sv.Env...)
	if sv.Watchdog > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("WATCHDOG_USEC=%d", sv.Watchdog.Microseconds()))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{pid: cmd.Process.Pid, began: time.Now(), ended: make(chan struct{})}
	p.start, _ = StartTime(p.pid)
	// Best effort: lowering needs CAP_SYS_RESOURCE.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.pid), []byte(strconv.Itoa(sv.OOMScore)), 0)
	err = os.WriteFile(pidFile(dir, sv.Name), fmt.Appendf(nil, "%d %d\n", p.pid, p.start), 0o644)
	go func() { // ends with the process; the keeper waits on ended
		_ = cmd.Wait()
		p.how = cmd.ProcessState.String()
		close(p.ended)
	}()
	return p, err
}

// adopt returns the process of an earlier supervisor, or nil.
func adopt(dir, name string) *process {
	pid, start, ok := ReadPID(dir, name)
	if !ok {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil
	}
	// Asked again once the descriptor pins the pid.
	if now, ok := StartTime(pid); !ok || now != start {
		unix.Close(fd)
		return nil
	}
	p := &process{pid: pid, start: start, began: time.Now(), ended: make(chan struct{})}
	go func() {
		defer unix.Close(fd)
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if n > 0 || (err != nil && !errors.Is(err, unix.EINTR)) {
				break
			}
		}
		p.how = "ended (it was started by an earlier supervisor)"
		close(p.ended)
	}()
	return p
}

// signal sends to the process if it is still the same one.
func (p *process) signal(s syscall.Signal) {
	if now, ok := StartTime(p.pid); ok && (p.start == 0 || now == p.start) {
		_ = syscall.Kill(p.pid, s)
	}
}

func pidFile(dir, name string) string { return filepath.Join(dir, name+".pid") }

// ReadPID reads a service's pid file; ok is false unless that very process runs.
func ReadPID(dir, name string) (pid int, start uint64, ok bool) {
	b, err := os.ReadFile(pidFile(dir, name))
	if err != nil {
		return 0, 0, false
	}
	if _, err := fmt.Sscanf(string(b), "%d %d", &pid, &start); err != nil || pid <= 1 {
		return 0, 0, false
	}
	now, alive := StartTime(pid)
	return pid, start, alive && now == start
}

// StartTime is the process's start in clock ticks after boot (proc(5), field 22 of
// /proc/PID/stat); ok is false when it is gone or a zombie.
func StartTime(pid int) (ticks uint64, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// The command's name may hold blanks and brackets; fields count from behind it.
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, false
	}
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return 0, false
	}
	ticks, err = strconv.ParseUint(f[19], 10, 64)
	return ticks, err == nil
}

// BeganAt is when a process began, by the wall clock; the zero time when it is gone.
func BeganAt(pid int) time.Time {
	ticks, ok := StartTime(pid)
	var up unix.Timespec
	if !ok || unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil {
		return time.Time{}
	}
	// A tick is 1/100 s (time(7), USER_HZ).
	return time.Now().Add(-time.Duration(up.Nano()) + time.Duration(ticks)*10*time.Millisecond)
}

// LogLimitBytes bounds a log file; it and its predecessor take twice that.
const LogLimitBytes = 16 << 20

// trimLog moves a log that has grown past the limit aside. The service keeps its open
// file, so the contents are copied and the file cut; lines written in between are lost.
func trimLog(file string, limitBytes int64) error {
	info, err := os.Stat(file)
	if err != nil || info.Size() <= limitBytes {
		return nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".1", b, 0o640); err != nil {
		return err
	}
	return os.Truncate(file, 0)
}
