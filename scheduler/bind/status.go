package bind

import (
	"context"
	"log/slog"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/libs/informer"
	"github.com/keelson/keelson/scheduler/framework"
)

func revOf(o metav1.Object) uint64 { return informer.Rev(o) }

// statusWriter writes why pods are not scheduled into their status. Only the newest word for each pod is
// kept, and nothing is written when the pod says so already.
type statusWriter struct {
	api kubernetes.Interface
	log *slog.Logger

	mu    sync.Mutex // guards the fields below
	todo  map[types.UID]word
	order []types.UID
	bell  chan struct{}
}

type word struct {
	pod       *framework.Pod
	condition corev1.PodCondition
	nominated string
}

const statusWriters = 16

func newStatusWriter(api kubernetes.Interface, log *slog.Logger) *statusWriter {
	return &statusWriter{api: api, log: log, todo: map[types.UID]word{}, bell: make(chan struct{}, statusWriters)}
}

// set asks for the condition and nomination to be written. p.Status.NominatedNodeName may be ahead of the API.
func (w *statusWriter) set(p *framework.Pod, c corev1.PodCondition, nominated string) {
	for _, have := range p.Status.Conditions {
		if have.Type == c.Type && have.Status == c.Status && have.Reason == c.Reason && have.Message == c.Message && nominated == "" && p.Status.NominatedNodeName == "" {
			return
		}
	}
	w.mu.Lock()
	if _, queued := w.todo[p.UID]; !queued {
		w.order = append(w.order, p.UID)
	}
	w.todo[p.UID] = word{p, c, nominated}
	w.mu.Unlock()
	select {
	case w.bell <- struct{}{}:
	default:
	}
}

// forget drops what has not been written about a pod.
func (w *statusWriter) forget(uid types.UID) {
	w.mu.Lock()
	delete(w.todo, uid)
	w.mu.Unlock()
}

func (w *statusWriter) take() (word, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.order) > 0 {
		uid := w.order[0]
		w.order = w.order[1:]
		if it, ok := w.todo[uid]; ok {
			delete(w.todo, uid)
			return it, true
		}
	}
	return word{}, false
}

func (w *statusWriter) run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range statusWriters {
		wg.Go(func() {
			for {
				it, ok := w.take()
				if !ok {
					select {
					case <-ctx.Done():
						return
					case <-w.bell:
					}
					continue
				}
				w.write(ctx, it)
			}
		})
	}
	wg.Wait()
	return nil
}

func (w *statusWriter) write(ctx context.Context, it word) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	it.condition.LastTransitionTime = metav1.Now()
	for _, have := range it.pod.Status.Conditions {
		if have.Type == it.condition.Type && have.Status == it.condition.Status {
			it.condition.LastTransitionTime = have.LastTransitionTime
		}
	}
	patch, err := statusPatch(it.pod.UID, it.condition, &it.nominated)
	if err == nil {
		_, err = w.api.CoreV1().Pods(it.pod.Namespace).Patch(ctx, it.pod.ObjectMeta.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && ctx.Err() == nil {
		w.log.Warn("status of a pod could not be written", "pod", it.pod.Name.String(), "err", err)
	}
}
