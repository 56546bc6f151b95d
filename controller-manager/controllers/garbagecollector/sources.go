package garbagecollector

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// look is how often discovery is asked for kinds that have come or gone.
const look = 5 * time.Second

// ignored kinds are never collected: events expire, and the same ones are served twice;
// the other group's copies would be seen twice.
var ignored = map[schema.GroupResource]bool{
	{Resource: "events"}: true, {Group: "events.k8s.io", Resource: "events"}: true,
}

// sources follows every kind that can be listed, watched and deleted: through the cache that other
// controllers read, or else by the metadata of its objects.
type sources struct {
	discovery discovery.DiscoveryInterface
	meta      metadata.Interface
	shared    func(r schema.GroupResource, f func(o metav1.Object, gone bool)) (runtime.Followed, bool)
	log       *slog.Logger
	seen      func(gvr schema.GroupVersionResource, o metav1.Object)
	gone      func(uid types.UID)

	mu      sync.Mutex
	running map[schema.GroupVersionResource]runtime.Followed // guarded by mu
}

// run follows discovery until ctx ends.
func (s *sources) run(ctx context.Context) error {
	s.running = map[schema.GroupVersionResource]runtime.Followed{}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, src := range s.running {
			src.Stop()
		}
	}()
	t := time.NewTicker(look)
	defer t.Stop()
	for {
		s.refresh(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// refresh starts what is new and stops what is not served any more. A group that
// fails to answer keeps its sources.
func (s *sources) refresh(ctx context.Context) {
	lists, err := discovery.ServerPreferredResources(s.discovery)
	if err != nil && len(lists) == 0 {
		s.log.Warn("cannot ask which kinds there are; will ask again", "err", err)
		return
	}
	partial := err != nil
	want := map[schema.GroupVersionResource]bool{}
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			continue
		}
		for _, r := range l.APIResources {
			if r.Group != "" {
				gv.Group = r.Group
			}
			can := func(v string) bool { return slices.Contains(r.Verbs, v) }
			gvr := gv.WithResource(r.Name)
			if can("delete") && can("list") && can("watch") && !ignored[gvr.GroupResource()] {
				want[gvr] = true
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for gvr := range want {
		if _, runs := s.running[gvr]; !runs {
			s.running[gvr] = s.start(ctx, gvr)
		}
	}
	if partial {
		return
	}
	for gvr, src := range s.running {
		if want[gvr] {
			continue
		}
		src.Stop()
		delete(s.running, gvr)
		src.Each(func(o metav1.Object) { s.gone(o.GetUID()) })
	}
}

func (s *sources) start(ctx context.Context, gvr schema.GroupVersionResource) runtime.Followed {
	tell := func(o metav1.Object, gone bool) {
		if gone {
			s.gone(o.GetUID())
			return
		}
		s.seen(gvr, o)
	}
	if src, ok := s.shared(gvr.GroupResource(), tell); ok {
		return src
	}
	cache := informer.Of(informer.From[*metav1.PartialObjectMetadataList](s.meta.Resource(gvr)), informer.Options[*metav1.PartialObjectMetadata]{
		Transform: slim,
	})
	cache.OnEvent(func(ev informer.Event[*metav1.PartialObjectMetadata]) { tell(ev.Last(), ev.Kind == informer.Deleted) })
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cache.Run(ctx)
	}()
	return runtime.Followed{
		Synced: cache.Synced(),
		Each: func(f func(metav1.Object)) {
			for _, o := range cache.List() {
				f(o)
			}
		},
		Stop: func() {
			cancel()
			<-done
		},
	}
}

// slim keeps what the graph needs: these caches hold every object of the kinds that no other controller reads.
func slim(o *metav1.PartialObjectMetadata) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Namespace: o.Namespace, Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion, DeletionTimestamp: o.DeletionTimestamp,
		OwnerReferences: o.OwnerReferences, Finalizers: o.Finalizers,
	}}
}

// warm reports whether every source shows its first list.
func (s *sources) warm() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, src := range s.running {
		select {
		case <-src.Synced:
		default:
			return false
		}
	}
	return len(s.running) > 0
}
