package volumes

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// nfs needs mount.nfs on the node (Debian: nfs-common).
var nfs = Type{
	Plugin: "kubernetes.io~nfs",
	Match:  func(q *request) bool { return q.nfs() != nil },
	Update: func(ctx context.Context, q *request) (Mounted, error) {
		s := q.nfs()
		if err := os.MkdirAll(q.dir, 0o750); err != nil {
			return Mounted{}, err
		}
		if mounted, err := isMounted(q.dir); err != nil || mounted {
			return Mounted{HostPath: q.dir, ReadOnly: s.ReadOnly}, err
		}
		server := s.Server
		if strings.Contains(server, ":") && !strings.HasPrefix(server, "[") {
			server = "[" + server + "]"
		}
		var options []string
		if s.ReadOnly || q.readOnly {
			options = append(options, "ro")
		}
		if q.pv != nil {
			options = append(options, q.pv.Spec.MountOptions...)
		}
		args := []string{"-t", "nfs"}
		if len(options) > 0 {
			args = append(args, "-o", strings.Join(options, ","))
		}
		out, err := exec.CommandContext(ctx, "mount", append(args, server+":"+s.Path, q.dir)...).CombinedOutput()
		if err != nil {
			return Mounted{}, fmt.Errorf("mount failed: %w\nMounting arguments: %s\nOutput: %s", err, strings.Join(args, " "), bytes.TrimSpace(out))
		}
		return Mounted{HostPath: q.dir, ReadOnly: s.ReadOnly}, nil
	},
}

func (q *request) nfs() *corev1.NFSVolumeSource {
	if q.pv != nil {
		return q.pv.Spec.NFS
	}
	return q.volume.NFS
}
