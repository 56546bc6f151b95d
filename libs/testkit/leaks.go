package testkit

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// Main runs the tests of a package that owns goroutines, from its TestMain, and fails
// when they leave one behind. What libraries start once and never end is let be.
func Main(m *testing.M, ignore ...goleak.Option) {
	code := m.Run()
	if code == 0 && !fuzzing() {
		http.DefaultClient.CloseIdleConnections()
		ignore = append(ignore,
			goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"),
			goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"),
		)
		if err := goleak.Find(ignore...); err != nil {
			fmt.Fprintln(os.Stderr, "the tests passed and left goroutines behind:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// fuzzing: the tool's own goroutines are still there.
func fuzzing() bool {
	for _, name := range []string{"test.fuzz", "test.fuzzworker"} {
		if f := flag.Lookup(name); f != nil && f.Value.String() != "" && f.Value.String() != "false" {
			return true
		}
	}
	return false
}
