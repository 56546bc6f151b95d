package testkit

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var update = flag.Bool("update", false, "rewrite golden files and scripts with what the test saw")

func rolling() *appsv1.RollingUpdateDeployment {
	quarter := intstr.FromString("25%")
	return &appsv1.RollingUpdateDeployment{MaxUnavailable: &quarter, MaxSurge: &quarter}
}

func port(n int) intstr.IntOrString { return intstr.FromInt32(int32(n)) }

// Golden compares got with the file testdata/<name>, or writes the file under -update.
func Golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		write(t, path, got)
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (run the test with -update to make it)", err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("%s differs (-want +got); -update rewrites it:\n%s", path, diff)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Script runs each file that matches testdata/<glob> as a subtest. start makes what the script talks to;
// the function that it returns is called for each command with the command's words and the indented
// lines beneath it, and gives what the command prints.
//
//	# a comment
//	add default/a priority=10
//	  more input, indented by two spaces
//	----
//	the expected output, up to an empty line
//
// Under -update the outputs are rewritten.
func Script(t *testing.T, glob string, start func(t *testing.T) func(t *testing.T, words []string, input string) string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", glob))
	if err != nil || len(files) == 0 {
		t.Fatalf("no script matches testdata/%s (%v)", glob, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), filepath.Ext(file)), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(data), start(t))
			if *update {
				write(t, file, got)
				return
			}
			if diff := cmp.Diff(strings.Split(string(data), "\n"), strings.Split(got, "\n")); diff != "" {
				t.Errorf("%s differs (-want +got); -update rewrites it:\n%s", file, diff)
			}
		})
	}
}

// play runs a script and returns it with the outputs that were seen.
func play(t *testing.T, script string, do func(t *testing.T, words []string, input string) string) string {
	var out strings.Builder
	lines := bufio.NewScanner(strings.NewReader(script))
	lines.Buffer(nil, 1<<20)
	var command string
	var input []string
	finish := func() {
		if command == "" {
			return
		}
		seen := strings.TrimRight(do(t, strings.Fields(command), strings.Join(input, "\n")), "\n")
		out.WriteString("----\n")
		if seen != "" {
			out.WriteString(seen + "\n")
		}
		command, input = "", nil
	}
	skipping := false // inside an old expected output
	for lines.Scan() {
		line := lines.Text()
		switch {
		case skipping && line != "":
		case skipping:
			skipping = false
			out.WriteString("\n")
		case line == "----":
			finish()
			skipping = true
		case strings.HasPrefix(line, "  ") && command != "":
			input = append(input, strings.TrimPrefix(line, "  "))
			out.WriteString(line + "\n")
		case line == "" && command != "":
			finish()
			out.WriteString("\n")
		case line == "" || strings.HasPrefix(line, "#"):
			out.WriteString(line + "\n")
		default:
			finish()
			command = line
			out.WriteString(line + "\n")
		}
	}
	finish()
	return out.String()
}

// Eventually waits until cond is true, and fails the test with what cond last said when limit has passed.
func Eventually(t *testing.T, limit time.Duration, cond func() (ok bool, seen string)) {
	t.Helper()
	deadline := time.Now().Add(limit)
	pause := time.Millisecond
	for {
		ok, seen := cond()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not true after %s; last seen: %s", limit, seen)
		}
		time.Sleep(pause)
		pause = min(2*pause, 100*time.Millisecond)
	}
}

// Args reads "key=value" words into a map; a word without "=" has an empty value.
func Args(words []string) map[string]string {
	out := map[string]string{}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		out[k] = v
	}
	return out
}

// Lines joins values, one a line, by their String or default form.
func Lines[T any](values []T) string {
	var b strings.Builder
	for _, v := range values {
		fmt.Fprintln(&b, v)
	}
	return b.String()
}
