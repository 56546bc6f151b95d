// Package oom tells when the machine had too little memory and the kernel ended a process for it.
//
// The main call is Run, which reads the kernel's log from its end on and calls back for each such
// process. A process that its own cgroup left too little is no matter of the machine's, and the
// runtime tells of it.
//
// It promises nothing about what happened before it began, nor about records that were overwritten
// before they were read. Run is one goroutine.
package oom

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Victim is a process that the kernel has ended.
type Victim struct {
	Process string
	PID     int
}

// Text is what is told of it, in upstream's words.
func (v Victim) Text() string {
	return fmt.Sprintf("System OOM encountered, victim process: %s, pid: %d", v.Process, v.PID)
}

// Log is where the kernel's log is read.
const Log = "/dev/kmsg"

// Run calls found until ctx ends. A log that cannot be read is an error.
func Run(ctx context.Context, log string, found func(Victim)) error {
	f, err := os.Open(log)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		return fmt.Errorf("%s: %w", log, err)
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	record := make([]byte, 8<<10) // the kernel gives one record at a time, of at most this size
	for {
		n, err := f.Read(record)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.EPIPE): // overwritten before it was read: the next one follows
			continue
		case err != nil:
			return fmt.Errorf("%s: %w", log, err)
		}
		if v, ok := parse(string(record[:n])); ok {
			found(v)
		}
	}
}

// parse reads one record: "6,1234,5678,-;text", and further lines that do not matter here.
//
// Source: Linux, Documentation/ABI/testing/dev-kmsg; mm/oom_kill.c prints the line since 5.0.
func parse(record string) (v Victim, ok bool) {
	_, text, _ := strings.Cut(record, ";")
	text, _, _ = strings.Cut(text, "\n")
	// "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/,task=tail,pid=12,uid=0";
	// for a cgroup "oom_memcg=/path" stands for "global_oom".
	text, is := strings.CutPrefix(text, "oom-kill:")
	before, victim, named := strings.Cut(text, ",task=")
	if !is || !named || !strings.Contains(before, ",global_oom,") {
		return v, false
	}
	at := strings.LastIndex(victim, ",pid=") // a process may have any name
	if at < 0 {
		return v, false
	}
	number, _, _ := strings.Cut(victim[at+len(",pid="):], ",")
	pid, err := strconv.Atoi(number)
	return Victim{Process: victim[:at], PID: pid}, err == nil
}
