package kubeproxy

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestTracking(t *testing.T) {
	const at = "net/netfilter/nf_conntrack_"
	for text, c := range map[string]struct {
		change func(*Config)
		cores  int
		want   []setting
	}{
		"as it comes": {nil, 2, []setting{
			{name: at + "max", value: 131072, least: true},
			{name: at + "tcp_timeout_established", value: 86400}, {name: at + "tcp_timeout_close_wait", value: 3600},
		}},
		"many cores": {nil, 16, []setting{
			{name: at + "max", value: 524288, least: true},
			{name: at + "tcp_timeout_established", value: 86400}, {name: at + "tcp_timeout_close_wait", value: 3600},
		}},
		"more cores than the limit is for": {nil, 128, []setting{
			{name: at + "max", value: 1048576, least: true},
			{name: at + "tcp_timeout_established", value: 86400}, {name: at + "tcp_timeout_close_wait", value: 3600},
		}},
		"nothing": {func(c *Config) { c.ConntrackMaxPerCore, c.ConntrackEstablished, c.ConntrackCloseWait = 0, 0, 0 }, 2, nil},
		"the rest": {func(c *Config) {
			c.ConntrackMaxPerCore, c.ConntrackEstablished, c.ConntrackCloseWait = 0, 0, 0
			c.ConntrackLiberal, c.ConntrackUDP, c.ConntrackUDPStream = true, 10*time.Second, 2*time.Minute
		}, 2, []setting{{name: at + "tcp_be_liberal", value: 1}, {name: at + "udp_timeout", value: 10}, {name: at + "udp_timeout_stream", value: 120}}},
	} {
		cfg := Default()
		if c.change != nil {
			c.change(&cfg)
		}
		if got := tracking(cfg, c.cores); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", text, got, c.want)
		}
	}
}

func TestSet(t *testing.T) {
	for text, c := range map[string]struct {
		have, after string // empty: there is no such parameter
		setting     setting
		fails       bool
	}{
		"another value":                        {"60", "3600", setting{value: 3600}, false},
		"the value":                            {"3600\n", "3600\n", setting{value: 3600}, false},
		"a higher value where it may be so":    {"262144\n", "262144\n", setting{value: 131072, least: true}, false},
		"a lower value where it may be higher": {"65536", "131072", setting{value: 131072, least: true}, false},
		"a parameter that the kernel lacks":    {"", "", setting{value: 1}, false},
		"one that is needed":                   {"", "", setting{value: 1, must: true}, true},
	} {
		root := t.TempDir()
		c.setting.name = "net/x"
		file := filepath.Join(root, c.setting.name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if c.have != "" {
			if err := os.WriteFile(file, []byte(c.have), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		err := set(root, []setting{c.setting}, slog.New(slog.NewTextHandler(io.Discard, nil)))
		got, _ := os.ReadFile(file)
		if string(got) != c.after || (err != nil) != c.fails {
			t.Errorf("%s: got %q and error %v, want %q and an error: %v", text, got, err, c.after, c.fails)
		}
	}
}
