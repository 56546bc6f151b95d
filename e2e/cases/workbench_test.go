package cases

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
)

// Story 2: run something and work with it: logs, exec, attach, cp, port-forward, debug.
func TestWorkbench(t *testing.T) {
	s := begin(t, "workbench", 8*time.Minute)
	s.kubectl("create", "deployment", "web", "--image", fill("$TEST"), "--replicas", "3")
	pods := s.running(60*time.Second, "app=web", 3)
	nodes := map[string]bool{}
	for _, p := range pods {
		nodes[p.Spec.NodeName] = true
	}
	if len(nodes) != 2 {
		t.Errorf("the three pods are on %v; want both nodes", nodes)
	}

	t.Run("logs", func(t *testing.T) {
		s := s.sub(t)
		for _, p := range pods {
			s.says(s.kubectl("logs", p.Name), "serving on 8080")
		}
		s.says(s.kubectl("logs", "deployment/web"), "serving on 8080")
		s.kubectl("run", "ticker", "--image", fill("$TEST"), "--restart", "Never", "--", "tick")
		s.becomes(30*time.Second, "Running", "get", "pod", "ticker", "-o", "jsonpath={.status.phase}")
		cmd := s.command("logs", "-f", "ticker")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for i := range 20 { // two seconds' worth: it follows
			if !lines.Scan() || lines.Text() != fmt.Sprintf("tick %d", i) {
				t.Fatalf("line %d of logs -f: %q (%v)", i, lines.Text(), lines.Err())
			}
		}
		s.kubectl("delete", "pod", "ticker", "--wait=false")
		for lines.Scan() {
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("logs -f did not end with its container: %v", err)
		}
		s.eventually(20*time.Second, "ticker is gone", func() (bool, string) {
			out, _ := s.try("get", "pod", "ticker")
			return strings.Contains(out, "not found"), out
		})
	})

	t.Run("logs options", func(t *testing.T) {
		s := s.sub(t)
		name := pods[0].Name
		s.kubectl("exec", name, "--", "sh", "-c", "for i in 1 2 3 4 5; do echo line $i; done >/proc/1/fd/1")
		s.eventually(5*time.Second, "the lines are in the log", func() (bool, string) {
			out := s.kubectl("logs", name, "--tail", "2")
			return out == "line 4\nline 5\n", out
		})
		s.says(s.kubectl("logs", name, "--timestamps", "--tail=1"), "T", "Z line 5")
		s.says(s.kubectl("logs", "-l", "app=web", "--prefix"), "[pod/"+name+"/")
		s.refused([]string{"previous terminated container"}, "logs", name, "--previous")
		s.refused([]string{`container nope is not valid for pod`}, "logs", name, "-c", "nope")
	})

	t.Run("exec", func(t *testing.T) {
		s := s.sub(t)
		name := pods[0].Name
		if out := s.kubectl("exec", name, "--", "hostname"); strings.TrimSpace(out) != name {
			t.Errorf("hostname in %s: %q", name, out)
		}
		out, err := s.stdin("some words\n", "exec", "-i", name, "--", "cat")
		if err != nil || out != "some words\n" {
			t.Errorf("exec -i cat: %q, %v", out, err)
		}
		out, err = s.try("exec", name, "--", "sh", "-c", "echo to stderr >&2; exit 7")
		if err == nil || !strings.Contains(out, "to stderr") || !strings.Contains(out, "exit code 7") {
			t.Errorf("exec of a failing command: %q, %v", out, err)
		}
		// A megabyte through and back, unchanged.
		big := strings.Repeat("0123456789abcde\n", 1<<16)
		out, err = s.stdin(big, "exec", "-i", name, "--", "cat")
		if err != nil || out != big {
			t.Errorf("exec -i cat of %d bytes gave %d back, %v", len(big), len(out), err)
		}
	})

	t.Run("exec with a terminal", func(t *testing.T) {
		s := s.sub(t)
		cmd := s.command("exec", "-it", pods[0].Name, "--", "sh")
		cmd.Env = append(os.Environ(), "TERM=xterm")
		tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 97})
		if err != nil {
			t.Fatal(err)
		}
		defer tty.Close()
		screen := follow(tty)
		say := func(line string) {
			if _, err := io.WriteString(tty, line+"\n"); err != nil {
				t.Fatal(err)
			}
		}
		shows := func(text string) {
			t.Helper()
			s.eventually(15*time.Second, "the terminal shows "+text, func() (bool, string) { return strings.Contains(screen.String(), text), screen.String() })
		}
		say("tty && echo is-a-terminal")
		shows("/dev/pts/")
		shows("\nis-a-terminal")
		// The size arrives on a stream of its own, possibly after the shell's first words.
		s.eventually(10*time.Second, "the shell sees 33 rows of 97", func() (bool, string) {
			say("stty size")
			return strings.Contains(screen.String(), "33 97"), screen.String()
		})
		if err := pty.Setsize(tty, &pty.Winsize{Rows: 44, Cols: 123}); err != nil {
			t.Fatal(err)
		}
		s.eventually(10*time.Second, "the shell sees the new size", func() (bool, string) {
			say("stty size")
			return strings.Contains(screen.String(), "44 123"), screen.String()
		})
		say("exit 0")
		if err := cmd.Wait(); err != nil {
			t.Errorf("the shell's end: %v\n%s", err, screen.String())
		}
	})

	t.Run("attach", func(t *testing.T) {
		s := s.sub(t)
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: $BUSYBOX, command: [sh, -c, "while read x; do echo got $x; done"], stdin: true}]
`)
		s.becomes(30*time.Second, "Running", "get", "pod", "reader", "-o", "jsonpath={.status.phase}")
		cmd := s.command("attach", "-i", "reader")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		screen := follow(out)
		io.WriteString(in, "hello\n")
		s.eventually(15*time.Second, "the container answers over attach", func() (bool, string) {
			return strings.Contains(screen.String(), "got hello"), screen.String()
		})
		in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})

	t.Run("cp", func(t *testing.T) {
		s := s.sub(t)
		name := pods[1].Name
		dir := t.TempDir()
		want := bytes.Repeat([]byte("keelson\x00\xff\n"), 50000)
		if err := os.WriteFile(filepath.Join(dir, "in"), want, 0o644); err != nil {
			t.Fatal(err)
		}
		s.kubectl("cp", filepath.Join(dir, "in"), name+":/tmp/copied")
		s.kubectl("cp", name+":/tmp/copied", filepath.Join(dir, "out"))
		got, err := os.ReadFile(filepath.Join(dir, "out"))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("copied there and back: %d bytes of %d, %v", len(got), len(want), err)
		}
	})

	t.Run("port-forward", func(t *testing.T) {
		s := s.sub(t)
		for _, target := range []string{"pod/" + pods[2].Name, "deployment/web"} {
			cmd := s.command("port-forward", target, ":8080")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			var port int
			if _, serr := fmt.Sscanf(line, "Forwarding from 127.0.0.1:%d -> 8080", &port); serr != nil {
				t.Fatalf("port-forward %s printed %q (%v)", target, line, err)
			}
			for i := range 5 {
				resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
				if err != nil {
					t.Fatalf("request %d through port-forward %s: %v", i, target, err)
				}
				b, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if !strings.HasPrefix(string(b), "web-") {
					t.Errorf("answer through port-forward: %q", b)
				}
			}
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})

	t.Run("run --rm -it", func(t *testing.T) {
		s := s.sub(t)
		cmd := s.command("run", "visitor", "--rm", "-it", "--restart=Never", "--image", fill("$BUSYBOX"), "--", "sh")
		cmd.Env = append(os.Environ(), "TERM=xterm")
		tty, err := pty.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		defer tty.Close()
		screen := follow(tty)
		shows := func(limit time.Duration, what, text string) {
			t.Helper()
			s.eventually(limit, what, func() (bool, string) { return strings.Contains(screen.String(), text), screen.String() })
		}
		// kubectl says so when the container runs, and then attaches. The shell's first prompt may have come before that.
		shows(75*time.Second, "kubectl is about to attach", "try pressing enter")
		io.WriteString(tty, "\n")
		shows(30*time.Second, "the shell prompts", "#")
		io.WriteString(tty, "echo I am $(hostname)\nexit\n")
		shows(30*time.Second, "the shell answers", "I am visitor")
		if err := cmd.Wait(); err != nil {
			t.Errorf("run --rm -it: %v\n%s", err, screen.String())
		}
		s.refused([]string{"not found"}, "get", "pod", "visitor")
	})

	t.Run("debug", func(t *testing.T) {
		s := s.sub(t)
		name := pods[0].Name
		out, err := s.stdin("ls /proc/1/root/testprogram && echo found it\n", "debug", "-i", name, "--image", fill("$BUSYBOX"), "--target", "test", "-c", "dbg", "--", "sh")
		if err != nil {
			// The container may have ended before debug attached to it; its log has the same.
			t.Logf("debug: %v: %s", err, out)
		}
		s.eventually(30*time.Second, "the ephemeral container saw the other one's files", func() (bool, string) {
			log, _ := s.try("logs", name, "-c", "dbg")
			return strings.Contains(out+log, "found it"), out + log
		})
		s.says(s.kubectl("get", "pod", name, "-o", "jsonpath={.spec.ephemeralContainers[*].name} {.status.ephemeralContainerStatuses[*].name}"), "dbg dbg")
		if n := s.pod(name).Status.ContainerStatuses[0].RestartCount; n != 0 {
			t.Errorf("debug restarted the container %d times", n)
		}
	})
}

// sub is the story as seen by one of its parts.
func (s *story) sub(t *testing.T) *story { return &story{T: t, ns: s.ns, ctx: s.ctx} }

// screen collects what a program prints.
type screen struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// follow reads r to its end in the background.
func follow(r io.Reader) *screen {
	s := &screen{}
	go func() { // ends with r, which ends with its program
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			s.mu.Lock()
			s.b.Write(buf[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return s
}
