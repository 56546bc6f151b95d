package logs

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Options of the rotation.
type Options struct {
	Root         string // directory of all pods' logs, /var/log/pods
	MaxSizeBytes int64  // a log larger than this is rotated
	MaxFiles     int    // files of one container, the current one included; at least 2
	Period       time.Duration
}

// Rotator keeps the logs of running containers small.
type Rotator struct {
	options Options
	runtime cri.RuntimeServiceClient
	log     *slog.Logger
	now     func() time.Time
}

// NewRotator starts nothing.
func NewRotator(o Options, rt cri.RuntimeServiceClient, log *slog.Logger) *Rotator {
	return &Rotator{options: o, runtime: rt, log: log, now: time.Now}
}

// Run rotates every Period until ctx ends.
func (r *Rotator) Run(ctx context.Context) error {
	tick := time.NewTicker(r.options.Period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := r.Once(ctx); err != nil && ctx.Err() == nil {
				r.log.Warn("rotating container logs failed", "err", err)
			}
		}
	}
}

// Once looks at every running container's log. Which container a file belongs to comes
// from the runtime, but only for files that are too large, so a quiet node costs no calls
// beyond one listing.
func (r *Rotator) Once(ctx context.Context) error {
	list, err := r.runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
		State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}})
	if err != nil {
		return err
	}
	for _, c := range list.Containers {
		path := filepath.Join(r.options.Root, c.Labels["io.kubernetes.pod.namespace"]+"_"+c.Labels["io.kubernetes.pod.name"]+"_"+c.Labels["io.kubernetes.pod.uid"],
			c.Labels["io.kubernetes.container.name"], c.Annotations["io.kubernetes.container.restartCount"]+".log")
		info, err := os.Stat(path)
		if err != nil || info.Size() < r.options.MaxSizeBytes {
			continue
		}
		if err := r.rotate(ctx, c.Id, path); err != nil {
			r.log.Warn("rotating a container log failed", "container", c.Id, "path", path, "err", err)
		}
	}
	return nil
}

// rotate compresses what was rotated before, removes the oldest and puts the current file
// aside. The newest rotated file stays plain, for a reader that is still in it.
func (r *Rotator) rotate(ctx context.Context, id, path string) error {
	old, err := filepath.Glob(path + ".*")
	if err != nil {
		return err
	}
	var kept []string
	for _, f := range old {
		switch {
		case strings.HasSuffix(f, ".tmp"):
			os.Remove(f) // left by a crash while compressing
		case strings.HasSuffix(f, ".gz"):
			os.Remove(strings.TrimSuffix(f, ".gz")) // its source, same reason
			kept = append(kept, f)
		default:
			kept = append(kept, f)
		}
	}
	slices.Sort(kept)
	kept = slices.Compact(kept)
	// Room for the current file and the one made of it.
	for len(kept) > max(r.options.MaxFiles-2, 0) {
		os.Remove(kept[0])
		kept = kept[1:]
	}
	for _, f := range kept {
		if !strings.HasSuffix(f, ".gz") {
			if err := compress(f); err != nil {
				return fmt.Errorf("compress %s: %w", f, err)
			}
		}
	}
	aside := path + "." + r.now().Format("20060102-150405")
	if err := os.Rename(path, aside); err != nil {
		return err
	}
	if _, err := r.runtime.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		// The runtime still writes to the file that was renamed: put it back.
		if back := os.Rename(aside, path); back != nil {
			return fmt.Errorf("reopen log: %w (and putting it back: %w)", err, back)
		}
		return fmt.Errorf("reopen log: %w", err)
	}
	return nil
}

func compress(path string) error {
	in, err := os.Open(path)
	if err != nil {
		if os.IsNotExist(err) {
			return nil
		}
		return err
	}
	defer in.Close()
	tmp := path + ".tmp"
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	z := gzip.NewWriter(out)
	if _, err = io.Copy(z, in); err == nil {
		err = z.Close()
	}
	if closed := out.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, path+".gz"); err != nil {
		return err
	}
	return os.Remove(path)
}
