package lab

import (
	"strings"
	"testing"
)

func TestRoom(t *testing.T) {
	for _, c := range []struct {
		what          string
		bytes, inodes int64
		says          string // of the refusal; empty: there is room
	}{
		{"a disk with room", 50 << 30, 1 << 20, ""},
		{"just enough", wantBytes, wantInodes, ""},
		{"a file system that counts no inodes", 50 << 30, -1, ""},
		{"below what the machines will write", 1 << 30, 1 << 20, "/var/tmp has 1024 MiB free, and a lab needs 2560"},
		{"full", 0, 1 << 20, "0 MiB free"},
		{"no inodes", 50 << 30, 500, "500 inodes free"},
	} {
		err := room("/var/tmp", c.bytes, c.inodes)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want %q", c.what, err, c.says)
		}
	}
}

// A threshold that the kubelet does not find in its list is off, so the list has to name them all.
func TestDiskFlags(t *testing.T) {
	got := strings.Join(diskFlags(), " ")
	for _, want := range []string{"memory.available<100Mi,", "nodefs.available<536870912,", "nodefs.inodesFree<10000,", "imagefs.available<536870912,", "imagefs.inodesFree<10000"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s: not in %s", want, got)
		}
	}
}
