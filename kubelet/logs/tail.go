// Package logs looks after the log files that the runtime writes for containers: it rotates
// them when they grow too large, removes old ones, and reads the last lines of one for a
// termination message.
//
// A log file is /var/log/pods/<namespace>_<name>_<uid>/<container>/<restart>.log; rotated ones
// get ".<time>" and then ".gz" appended, as upstream names them, so that log readers find
// them. Rotator.Run owns its goroutine; everything is safe to stop at any line: a half
// compressed file is started again.
package logs

import (
	"bytes"
	"io"
	"os"
	"time"
)

// Limits of a termination message taken from the log. Source: Kubernetes tasks, "Determine
// the Reason for Pod Failure".
const (
	tailBytes = 2048
	tailLines = 80
)

// Tail is the end of a CRI log file, at most 2048 bytes or 80 lines, without the runtime's
// prefix on each line.
func Tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	// The prefix of a line is about 40 bytes; read enough for full lines of one letter.
	const window = tailBytes + tailLines*64
	from := max(info.Size()-window, 0)
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return ""
	}
	data, err := io.ReadAll(io.LimitReader(f, window))
	if err != nil {
		return ""
	}
	lines := bytes.SplitAfter(data, []byte("\n"))
	if from > 0 && len(lines) > 0 {
		lines = lines[1:] // the first is cut
	}
	var out [][]byte
	for _, line := range lines {
		if len(line) > 0 {
			out = append(out, content(line))
		}
	}
	if len(out) > tailLines {
		out = out[len(out)-tailLines:]
	}
	text := bytes.Join(out, nil)
	if len(text) > tailBytes {
		text = text[len(text)-tailBytes:]
	}
	return string(text)
}

// content strips "<time> <stream> <tag> " from a line and, for a partial one, its newline.
func content(line []byte) []byte {
	parts := bytes.SplitN(line, []byte(" "), 4)
	if len(parts) < 4 {
		return line
	}
	if _, err := time.Parse(time.RFC3339Nano, string(parts[0])); err != nil {
		return line
	}
	if bytes.HasPrefix(parts[2], []byte("P")) {
		return bytes.TrimSuffix(parts[3], []byte("\n"))
	}
	return parts[3]
}
