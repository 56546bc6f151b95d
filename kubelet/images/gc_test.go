package images

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestCollect(t *testing.T) {
	now := time.Unix(100_000, 0)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	images := []Known{
		{ID: "used", SizeBytes: 100, Used: true, Found: ago(time.Hour), LastUsed: now},
		{ID: "fresh", SizeBytes: 100, Found: ago(time.Minute)},
		{ID: "recent", SizeBytes: 100, Found: ago(3 * time.Hour), LastUsed: ago(time.Minute)},
		{ID: "stale", SizeBytes: 100, Found: ago(2 * time.Hour), LastUsed: ago(time.Hour)},
		{ID: "never", SizeBytes: 100, Found: ago(time.Hour)},
	}
	o := DefaultGCOptions()
	aged := o
	aged.ImageMaximumGCAge = metav1.Duration{Duration: 30 * time.Minute}
	off := o
	off.ImageGCHighThresholdPercent = 100
	for name, row := range map[string]struct {
		o         GCOptions
		available uint64
		want      string
		missing   uint64
	}{
		"enough room":                        {o, 160, "", 0},
		"one is enough":                      {o, 149, "never", 0},
		"the longest unused go first":        {o, 50, "never stale", 0},
		"down to the low threshold only":     {o, 0, "never stale", 0},
		"too old goes without need":          {aged, 900, "stale never", 0},
		"too old counts towards what is due": {aged, 50, "stale never", 0},
		"turned off":                         {off, 0, "", 0},
	} {
		// 1000 bytes: above 85 % used something goes, until 80 % are.
		remove, missing := Collect(row.o, images, Disk{CapacityBytes: 1000, AvailableBytes: row.available}, now)
		var got []string
		for _, i := range remove {
			got = append(got, i.ID)
		}
		if strings.Join(got, " ") != row.want || missing != row.missing {
			t.Errorf("%s: %v, %d missing; want %s, %d missing", name, got, missing, row.want, row.missing)
		}
	}
	if remove, missing := Collect(o, images[:1], Disk{CapacityBytes: 1000}, now); len(remove) != 0 || missing != 200 {
		t.Errorf("nothing to remove: %v, %d missing", remove, missing)
	}
}
