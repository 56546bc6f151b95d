package testkit

import (
	"strconv"
	"strings"
	"testing"
)

func TestScript(t *testing.T) {
	Script(t, "sum.txt", func(t *testing.T) func(*testing.T, []string, string) string {
		return func(t *testing.T, words []string, input string) string {
			sum := 0
			for _, w := range append(words[1:], strings.Fields(input)...) {
				n, err := strconv.Atoi(w)
				if err != nil {
					t.Fatal(err)
				}
				sum += n
			}
			return strconv.Itoa(sum)
		}
	})
}

func TestPlayRewritesOutputsOnly(t *testing.T) {
	got := play(t, "# c\nx 1\n----\nold\nolder\n\ny\n", func(_ *testing.T, w []string, _ string) string { return "new " + w[0] })
	if want := "# c\nx 1\n----\nnew x\n\ny\n----\nnew y\n"; got != want {
		t.Errorf("want\n%s\ngot\n%s", want, got)
	}
}

func TestBuildersRepeat(t *testing.T) {
	a, b := Pod("ns/a", Requests("cpu=1")), Pod("ns/a", Requests("cpu=1"))
	if a.UID != b.UID || a.UID == Pod("ns/b").UID || a.Spec.Containers[0].Resources.Requests.Cpu().MilliValue() != 1000 {
		t.Errorf("%v %v", a, b)
	}
}
