package cri

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson/keelson/kubelet/criconfig"
)

// Changes tells when something of a pod has changed in the runtime: by the runtime's own
// events where it has them, and by listing (two cheap calls) where not.
//
// It only says where to look, never what has happened, so a lost event costs one listing
// period. The worker that makes a call looks by itself afterwards; what comes from here
// are containers that end by themselves.
type Changes struct {
	client  *Client
	changed func(types.UID)
	log     *slog.Logger
	period  time.Duration
	eager   atomic.Int64

	last map[string]fingerprint // owned by Run
	// alive is when the runtime last answered, in Unix nanoseconds.
	alive atomic.Int64
}

type fingerprint struct {
	uid   types.UID
	state int32
	pod   bool
}

// NewChanges starts nothing. period is the time between listings when nothing is
// expected; changed must not block. Pods are reported once at the start.
func NewChanges(c *Client, period time.Duration, log *slog.Logger, changed func(types.UID)) *Changes {
	return &Changes{client: c, changed: changed, log: log, period: period, last: map[string]fingerprint{}}
}

// Expect says that n more (or fewer) containers are expected to end soon: while any are,
// listings are four times as frequent.
func (c *Changes) Expect(n int64) { c.eager.Add(n) }

// Alive is when the runtime last answered a listing.
func (c *Changes) Alive() time.Time { return time.Unix(0, c.alive.Load()) }

// eventsFallback is the listing period beside working events.
const eventsFallback = 30 * time.Second

// Run lists and follows until ctx ends.
func (c *Changes) Run(ctx context.Context) error {
	events := make(chan types.UID, 256)
	streaming := make(chan bool, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.follow(ctx, events, streaming)
	}()
	defer func() { <-ended }()
	follows := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case uid := <-events:
			c.changed(uid)
			continue
		case follows = <-streaming:
		case <-timer.C:
		}
		if err := c.list(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("listing containers failed", "err", err)
		}
		next := c.period
		switch {
		case follows:
			next = eventsFallback
		case c.eager.Load() > 0:
			next /= 4
		}
		timer.Reset(next)
	}
}

// list compares with the listing before and reports the pods that differ.
func (c *Changes) list(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	began := time.Now()
	sandboxes, err := c.client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	containers, err := c.client.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return err
	}
	now := time.Now()
	c.alive.Store(now.UnixNano())
	c.client.metrics.Relisted(began, now)
	next := make(map[string]fingerprint, len(sandboxes.Items)+len(containers.Containers))
	for _, s := range sandboxes.Items {
		next[s.Id] = fingerprint{types.UID(s.Labels[criconfig.LabelPodUID]), int32(s.State), true}
	}
	for _, k := range containers.Containers {
		next[k.Id] = fingerprint{types.UID(k.Labels[criconfig.LabelPodUID]), int32(k.State), false}
	}
	told := map[types.UID]bool{}
	tell := func(uid types.UID) {
		if uid != "" && !told[uid] {
			told[uid] = true
			c.changed(uid)
		}
	}
	for id, f := range next {
		if c.last[id] != f {
			tell(f.uid)
		}
	}
	for id, f := range c.last {
		if _, still := next[id]; !still {
			tell(f.uid)
		}
	}
	c.last = next
	return nil
}

// follow reads the runtime's events for as long as it has them.
func (c *Changes) follow(ctx context.Context, events chan<- types.UID, streaming chan<- bool) {
	for ctx.Err() == nil {
		stream, err := c.client.GetContainerEvents(ctx, &cri.GetEventsRequest{})
		for first := true; err == nil; first = false {
			var e *cri.ContainerEventResponse
			if e, err = stream.Recv(); err != nil {
				break
			}
			if first {
				// Only now is it certain that the runtime has this call.
				select {
				case streaming <- true:
				default:
				}
			}
			uid := types.UID(e.GetPodSandboxStatus().GetMetadata().GetUid())
			if uid == "" && len(e.ContainersStatuses) > 0 {
				uid = types.UID(e.ContainersStatuses[0].Labels[criconfig.LabelPodUID])
			}
			select {
			case events <- uid:
			case <-ctx.Done():
				return
			}
		}
		if status.Code(err) == codes.Unimplemented {
			return
		}
		select {
		case streaming <- false:
		default:
		}
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
		}
	}
}
