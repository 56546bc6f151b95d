package config

import (
	"strings"
	"testing"
)

// A configuration file is read or refused with a place, and shown again; it can neither break
// the daemon nor take its memory.
func FuzzFile(f *testing.F) {
	f.Add("port: 3\nnames: [a, b]\nelection: {period: 1s}\nprofiles:\n- name: x\n  weight: 1\n  selector: {matchLabels: {a: b}}\n")
	f.Add("a: &a [1]\nb: [*a, *a]\n")
	f.Add("gates: {A: \"true\"}\naddress: ::1\nratio: 1e400\n")
	f.Add("? [x]\n: y\n<<: *z\n")
	f.Fuzz(func(t *testing.T, text string) {
		cfg := defaults()
		err := parse("f.yaml", []byte(text), &cfg)
		if err != nil && !strings.HasPrefix(err.Error(), "f.yaml") {
			t.Fatalf("%q: the error does not name the file: %v", text, err)
		}
		if err != nil {
			return
		}
		_ = cfg.Validate()
		_ = Values(cfg)
	})
}
