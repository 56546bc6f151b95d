package config

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

type inner struct {
	Period metav1.Duration `yaml:"period" flag:"period" help:"how often"`
}

type sample struct {
	Common
	Port     int               `yaml:"port" flag:"port" help:"the port"`
	Names    []string          `yaml:"names" flag:"names"`
	Gates    map[string]string `yaml:"gates" flag:"gates"`
	On       bool              `yaml:"on" flag:"on"`
	Ratio    float64           `yaml:"ratio" flag:"ratio"`
	Address  netip.Addr        `yaml:"address" flag:"address"`
	Election inner             `yaml:"election"`
	Profiles []profile         `yaml:"profiles"`
}

type profile struct {
	Name     string               `yaml:"name"`
	Weight   *int32               `yaml:"weight"`
	Selector metav1.LabelSelector `yaml:"selector"`
}

func (s sample) Validate() field.ErrorList {
	var errs field.ErrorList
	if s.Port < 1 {
		errs = append(errs, field.Invalid(field.NewPath("port"), s.Port, "must be at least 1"))
	}
	if s.Election.Period.Duration <= 0 {
		errs = append(errs, field.Invalid(field.NewPath("election", "period"), s.Election.Period.Duration.String(), "must be positive"))
	}
	return errs
}

func defaults() sample {
	return sample{Common: DefaultCommon(), Port: 1, Election: inner{Period: metav1.Duration{Duration: time.Second}}}
}

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFlagsWinOverFileAndFileOverDefaults(t *testing.T) {
	path := file(t, `
apiVersion: keelson/v1
port: 2
names: [a, b]
gates: {x: "1"}
on: true
ratio: 0.5
address: 10.0.0.1
logLevel: 4
election: {period: 3s}
profiles:
- name: first
  weight: 7
  selector: {matchLabels: {app: web}}
`)
	got, _, err := Parse("d", "a daemon", defaults(), nil, []string{"--config", path, "--port=3", "--period", "5s", "--names=c", "--names=d", "-v2", "--on=false"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	weight := int32(7)
	want := sample{
		Common: Common{LogLevel: "2", LogFormat: "text"}, Port: 3, Names: []string{"c", "d"}, Gates: map[string]string{"x": "1"}, Ratio: 0.5,
		Address: netip.MustParseAddr("10.0.0.1"), Election: inner{Period: metav1.Duration{Duration: 5 * time.Second}},
		Profiles: []profile{{Name: "first", Weight: &weight, Selector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}}},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.AllowUnexported(sample{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	shown, ok := Values(got).(map[string]any)
	if !ok || shown["port"] != 3 || shown["election"].(map[string]any)["period"] != "5s" || shown["logLevel"] != "2" {
		t.Errorf("configz: %v", shown)
	}
}

func TestFaultsNameFileLineFieldAndFlag(t *testing.T) {
	for _, row := range []struct {
		name, file string
		args       []string
		want       []string
	}{
		{"unknown field", "port: 2\nprot: 3\n", nil, []string{`c.yaml:2: prot: unknown field`}},
		{"case of a field", "Port: 2\n", nil, []string{`c.yaml:1: Port: unknown field (is "port" meant?)`}},
		{"nested unknown field", "profiles:\n- name: a\n  wait: 1\n", nil, []string{`c.yaml:3: profiles[0].wait: unknown field`}},
		{"doubled field", "port: 2\nport: 3\n", nil, []string{`c.yaml:2: port: field is given twice`}},
		{"wrong type", "port: many\nelection:\n  period: 3\n", nil, []string{`c.yaml:1: port: "many" is not a whole number`, `c.yaml:3: election.period: "3" is not a duration`}},
		{"list wanted", "names: a\n", nil, []string{`c.yaml:1: names: want a list, have "a"`}},
		{"no YAML", "port: [", nil, []string{`c.yaml: line 1`}},
		{"bomb", "gates: {a: &a [x,x], b: &b [*a,*a]}\n", nil, []string{`want a single value`, `gates.a`}},
		{"invalid, from file and flag", "port: 0\n", []string{"--period=-1s"}, []string{`port: Invalid value: 0: must be at least 1 (flag --port) in `, `election.period: Invalid value: "-1s": must be positive (flag --period)`}},
		{"wrong flag type", "", []string{"--port=x"}, []string{`invalid argument "x" for "--port" flag: "x" is not a whole number`}},
		{"unknown flag", "", []string{"--prot=1"}, []string{`unknown flag: --prot (see d --help)`}},
		{"stray word", "", []string{"start"}, []string{`unexpected argument "start"`}},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, _, err := Parse("d", "", defaults(), nil, append([]string{"--config", file(t, row.file)}, row.args...), nil)
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range row.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("want %q in:\n%v", w, err)
				}
			}
		})
	}
}

func TestAliasesCannotGrowWithoutBound(t *testing.T) {
	ten := func(s string) string { return "[" + strings.Repeat(s+",", 10) + "]" }
	content := "a: &a " + ten("1") + "\nb: &b " + ten("*a") + "\nc: &c " + ten("*b") + "\nd: &d " + ten("*c") + "\ne: " + ten("*d") + "\n"
	var into struct {
		A []int         `yaml:"a"`
		B [][]int       `yaml:"b"`
		C [][][]int     `yaml:"c"`
		D [][][][]int   `yaml:"d"`
		E [][][][][]int `yaml:"e"`
	}
	if err := Load(file(t, content), &into); err == nil || !strings.Contains(err.Error(), "aliases may repeat too much") {
		t.Errorf("got %v", err)
	}
}

func TestExitCodes(t *testing.T) {
	for _, row := range []struct {
		name string
		args []string
		run  func(context.Context, sample, *slog.Logger) error
		code int
		out  string
		err  string
	}{
		{name: "clean end", run: func(context.Context, sample, *slog.Logger) error { return nil }},
		{name: "version", args: []string{"--version"}, out: "d " + Version},
		{name: "help", args: []string{"--help"}, out: "--logging-format"},
		{name: "usage", args: []string{"--nope"}, code: ExitUsage, err: "d: unknown flag: --nope"},
		{name: "missing file", args: []string{"--config=/does/not/exist"}, code: ExitUsage, err: "d: configuration file: stat /does/not/exist: no such file"},
		{name: "failure", run: func(context.Context, sample, *slog.Logger) error { return errors.New("port 1 is in use") }, code: 1, err: "d: port 1 is in use\n"},
		{name: "failure of the configuration, found late", run: func(context.Context, sample, *slog.Logger) error { return Usage(errors.New("no such file")) }, code: ExitUsage, err: "d: no such file\n"},
		{name: "panic", run: func(context.Context, sample, *slog.Logger) error { panic("oh") }, code: 1, err: "d: panic: oh"},
		{name: "bad level", args: []string{"-v=loud"}, code: ExitUsage, err: `d: log level "loud"`},
	} {
		t.Run(row.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			code := Exec(t.Context(), "d", "a daemon", defaults(), row.run, nil, row.args, &out, &errs)
			if code != row.code || !strings.Contains(out.String(), row.out) || !strings.Contains(errs.String(), row.err) {
				t.Errorf("code %d, want %d\nout: %s\nerr: %s", code, row.code, out.String(), errs.String())
			}
		})
	}
}

func TestFlagsAreShown(t *testing.T) {
	got := Flags(defaults())
	for name, want := range map[string]string{"port": "1", "period": "1s", "v": "info"} {
		if got[name] != want {
			t.Errorf("--%s: %q, want %q", name, got[name], want)
		}
	}
	if _, ok := got["profiles"]; ok {
		t.Error("what has no flag is shown as one")
	}
}
