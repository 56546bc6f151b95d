package cgroups

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

// What systemd is not told it takes away at the next daemon-reload.
func TestProperties(t *testing.T) {
	none := fmt.Sprint(uint64(math.MaxUint64))
	for _, c := range []struct {
		text string
		v    Values
		want string
	}{
		{"nothing is set", Values{}, ""},
		{"a quarter of a core", Values{QuotaMicros: 25_000}, "CPUQuotaPeriodUSec=100000 CPUQuotaPerSecUSec=250000"},
		{"a little more than a whole percent", Values{QuotaMicros: 12_345}, "CPUQuotaPeriodUSec=100000 CPUQuotaPerSecUSec=130000"},
		{"limits", Values{MemoryBytes: 64 << 20, Pids: 100}, "MemoryMax=67108864 TasksMax=100"},
		{"limits that were removed", Values{QuotaMicros: -1, MemoryBytes: -1}, "CPUQuotaPeriodUSec=100000 CPUQuotaPerSecUSec=" + none + " MemoryMax=" + none},
	} {
		var got []string
		for _, p := range properties(c.v, 100_000) {
			got = append(got, fmt.Sprintf("%s=%v", p.Name, p.Value.Value()))
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: got %q, want %q", c.text, s, c.want)
		}
	}
}
