// Package images brings images to the node and removes those that nothing needs.
//
// The main calls are Puller.Ensure (pull.go) and Collector.Run (here). Collect is the pure
// decision: which images go, in which order, when the disk is too full.
//
// It promises that an image that a container uses, that is pinned, that is the sandbox
// image, or that was pulled less than MinAge ago is never removed. What was used when is
// kept in memory only: after a restart every image counts as used just now.
//
// Collector.Run is one goroutine; mu guards its map. /debug/images shows Debug.
package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson/keelson/kubelet/metrics"
)

// GCOptions say when images are removed.
type GCOptions struct {
	ImageGCHighThresholdPercent int32           `yaml:"imageGCHighThresholdPercent" flag:"image-gc-high-threshold" help:"disk usage in percent above which unused images are removed; 100 turns it off"`
	ImageGCLowThresholdPercent  int32           `yaml:"imageGCLowThresholdPercent" flag:"image-gc-low-threshold" help:"disk usage in percent down to which unused images are removed"`
	ImageMinimumGCAge           metav1.Duration `yaml:"imageMinimumGCAge" flag:"minimum-image-ttl-duration" help:"how long an image is kept at least"`
	ImageMaximumGCAge           metav1.Duration `yaml:"imageMaximumGCAge" flag:"maximum-image-ttl-duration" help:"how long an unused image is kept at most; 0 for ever"`
}

// DefaultGCOptions are upstream's.
func DefaultGCOptions() GCOptions {
	return GCOptions{ImageGCHighThresholdPercent: 85, ImageGCLowThresholdPercent: 80, ImageMinimumGCAge: metav1.Duration{Duration: 2 * time.Minute}}
}

// Known is one image on the node.
type Known struct {
	ID        string
	SizeBytes uint64
	Used      bool // by a container, pinned, or the sandbox's
	Found     time.Time
	LastUsed  time.Time // of an unused image; zero: never
}

// Disk is the file system that holds images.
type Disk struct{ CapacityBytes, AvailableBytes uint64 }

// Collect returns the images to remove, in order: those too old whatever the disk says,
// then the longest unused until the disk is down to the low threshold. missing is what
// cannot be freed.
func Collect(o GCOptions, images []Known, disk Disk, now time.Time) (remove []Known, missingBytes uint64) {
	var candidates []Known
	for _, i := range images {
		if i.Used || now.Sub(i.Found) < o.ImageMinimumGCAge.Duration {
			continue
		}
		if why(o, i, now) == "age" {
			remove = append(remove, i)
			continue
		}
		candidates = append(candidates, i)
	}
	if disk.CapacityBytes == 0 || o.ImageGCHighThresholdPercent >= 100 {
		return remove, 0
	}
	usedPercent := 100 - float64(disk.AvailableBytes)*100/float64(disk.CapacityBytes)
	if usedPercent < float64(o.ImageGCHighThresholdPercent) {
		return remove, 0
	}
	goal := uint64(float64(disk.CapacityBytes) * float64(100-o.ImageGCLowThresholdPercent) / 100)
	if goal <= disk.AvailableBytes {
		return remove, 0
	}
	need := goal - disk.AvailableBytes
	for _, i := range remove {
		need -= min(need, i.SizeBytes)
	}
	sort.SliceStable(candidates, func(i, j int) bool {
		if !candidates[i].LastUsed.Equal(candidates[j].LastUsed) {
			return candidates[i].LastUsed.Before(candidates[j].LastUsed)
		}
		return candidates[i].Found.Before(candidates[j].Found)
	})
	for _, i := range candidates {
		if need == 0 {
			break
		}
		remove = append(remove, i)
		need -= min(need, i.SizeBytes)
	}
	return remove, need
}

// Collector removes images from time to time.
type Collector struct {
	o       GCOptions
	node    string
	images  cri.ImageServiceClient
	runtime cri.RuntimeServiceClient
	events  record.EventRecorder
	counts  *metrics.Metrics
	log     *slog.Logger

	mu   sync.Mutex
	seen map[string]Known // by ID
}

const gcPeriod = 5 * time.Minute

// NewCollector starts nothing.
func NewCollector(o GCOptions, node string, images cri.ImageServiceClient, runtime cri.RuntimeServiceClient, events record.EventRecorder, counts *metrics.Metrics, log *slog.Logger) *Collector {
	return &Collector{o: o, node: node, images: images, runtime: runtime, events: events, counts: counts, log: log, seen: map[string]Known{}}
}

// Run works until ctx ends.
func (c *Collector) Run(ctx context.Context) error {
	failures := 0
	for {
		err := c.pass(ctx, false)
		if err != nil && ctx.Err() == nil {
			if failures++; failures > 1 { // the runtime may only be starting
				c.event("ImageGCFailed", err.Error())
				c.log.Warn("images are not collected", "failures", failures, "err", err)
			}
		} else {
			failures = 0
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(gcPeriod):
		}
	}
}

// FreeAll removes every image that is not used.
func (c *Collector) FreeAll(ctx context.Context) error { return c.pass(ctx, true) }

func (c *Collector) pass(ctx context.Context, all bool) error {
	now := time.Now()
	known, err := c.observe(ctx, now)
	if err != nil {
		return err
	}
	o, disk := c.o, Disk{}
	if all {
		o.ImageGCHighThresholdPercent, o.ImageGCLowThresholdPercent, o.ImageMinimumGCAge.Duration = 0, 0, 0
		disk = Disk{CapacityBytes: 1 << 62} // nothing is ever enough
	} else if disk, err = c.disk(ctx); err != nil {
		return err
	}
	remove, missing := Collect(o, known, disk, now)
	var faults []error
	freed := uint64(0)
	for _, i := range remove {
		if _, err := c.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: i.ID}}); err != nil {
			faults = append(faults, fmt.Errorf("remove image %s: %w", i.ID, err))
			continue
		}
		freed += i.SizeBytes
		c.counts.ImageCollected(why(c.o, i, now))
		c.mu.Lock()
		delete(c.seen, i.ID)
		c.mu.Unlock()
	}
	if len(remove) > 0 {
		c.log.Info("unused images are removed", "count", len(remove)-len(faults), "bytes", freed)
	}
	if !all && missing > 0 {
		message := fmt.Sprintf("Failed to garbage collect required amount of images. Attempted to free %d bytes, but only found %d bytes eligible to free.", missing+freed, freed)
		c.event("FreeDiskSpaceFailed", message)
		faults = append(faults, errors.New(message))
	}
	return errors.Join(faults...)
}

// why says whether an image is removed because of its age or for space.
func why(o GCOptions, i Known, now time.Time) string {
	since := i.LastUsed
	if since.IsZero() {
		since = i.Found
	}
	if o.ImageMaximumGCAge.Duration > 0 && now.Sub(since) > o.ImageMaximumGCAge.Duration {
		return "age"
	}
	return "space"
}

func (c *Collector) event(reason, message string) {
	c.events.Event(&corev1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: c.node, UID: types.UID(c.node)}, corev1.EventTypeWarning, reason, message)
}

// observe lists the images and keeps when they were first and last seen in use.
func (c *Collector) observe(ctx context.Context, now time.Time) ([]Known, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	list, err := c.images.ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	containers, err := c.runtime.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	used := map[string]bool{c.sandboxImage(ctx): true}
	for _, ctr := range containers.Containers {
		used[ctr.ImageRef], used[ctr.ImageId], used[ctr.GetImage().GetImage()] = true, true, true
	}
	delete(used, "")
	c.mu.Lock()
	defer c.mu.Unlock()
	next := make(map[string]Known, len(list.Images))
	out := make([]Known, 0, len(list.Images))
	for _, i := range list.Images {
		k, ok := c.seen[i.Id]
		if !ok {
			k = Known{ID: i.Id, Found: now}
		}
		k.SizeBytes = i.Size
		k.Used = i.Pinned || used[i.Id]
		for _, names := range [][]string{i.RepoTags, i.RepoDigests} {
			for _, name := range names {
				k.Used = k.Used || used[name]
			}
		}
		if k.Used {
			k.LastUsed = now
		}
		next[i.Id] = k
		out = append(out, k)
	}
	c.seen = next
	return out, nil
}

// sandboxImage asks the runtime what sandboxes are made of: older ones do not pin it.
// containerd tells it in its verbose status; another runtime's answer is no harm.
func (c *Collector) sandboxImage(ctx context.Context) string {
	status, err := c.runtime.Status(ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		return ""
	}
	var config struct {
		SandboxImage string `json:"sandboxImage"`
	}
	_ = json.Unmarshal([]byte(status.Info["config"]), &config)
	return config.SandboxImage
}

func (c *Collector) disk(ctx context.Context) (Disk, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	info, err := c.images.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{})
	if err != nil {
		return Disk{}, fmt.Errorf("ask for the file system of images: %w", err)
	}
	for _, f := range info.ImageFilesystems {
		var s unix.Statfs_t
		if err := unix.Statfs(f.GetFsId().GetMountpoint(), &s); err != nil {
			return Disk{}, fmt.Errorf("measure %s: %w", f.GetFsId().GetMountpoint(), err)
		}
		return Disk{CapacityBytes: s.Blocks * uint64(s.Bsize), AvailableBytes: s.Bavail * uint64(s.Bsize)}, nil
	}
	return Disk{}, errors.New("the runtime names no file system of images")
}

// Debug lists the images that are known.
func (c *Collector) Debug() any {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]Known, 0, len(c.seen))
	for _, k := range c.seen {
		out = append(out, k)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}
