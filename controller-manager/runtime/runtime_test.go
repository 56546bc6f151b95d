package runtime_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

func namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// three keeps exactly three config maps in every namespace. It looks at its cache
// only: were it ever run on an old one, it would make too many or delete too many.
func three(passes *atomic.Int32, most *atomic.Int32) runtime.Row {
	return runtime.Row{
		Name: "three", Reads: []string{"namespaces", "configmaps"}, Writes: []string{"configmaps"},
		New: func(e *runtime.Env) error {
			spaces, maps := runtime.Read[*corev1.Namespace](e), runtime.Read[*corev1.ConfigMap](e)
			var busy atomic.Int32
			q := e.Keyed("", 4, func(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
				passes.Add(1)
				if n := busy.Add(1); n > most.Load() {
					most.Store(n)
				}
				defer busy.Add(-1)
				have := maps.By(runtime.ByNamespace, p.Key.Name)
				api := e.Client().CoreV1().ConfigMaps(p.Key.Name)
				if len(have) > 3 {
					return runtime.Result{}, runtime.Delete(ctx, p, api, have[0])
				}
				_, err := runtime.Together(ctx, 3-len(have), func(ctx context.Context, _ int) error {
					_, err := runtime.Create(ctx, p, api, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "m-", Namespace: p.Key.Name}})
					return err
				})
				return runtime.Result{}, err
			})
			runtime.On(q, spaces, runtime.Self[*corev1.Namespace])
			maps.OnEvent(func(ev informer.Event[*corev1.ConfigMap]) {
				q.Add(runtime.KeyOf(&metav1.ObjectMeta{Name: ev.Last().Namespace}))
			})
			return nil
		},
	}
}

func TestReadYourWrites(t *testing.T) {
	var passes, most atomic.Int32
	ctrltest.Test(t, []runtime.Row{three(&passes, &most)}, []kruntime.Object{namespace("a"), namespace("b")}, func(t *testing.T, h *ctrltest.Harness) {
		h.API.Lag(700 * time.Millisecond)
		h.Writes()
		extra := func(name string) {
			ctrltest.Must(h.Client.CoreV1().ConfigMaps("a").Create(context.Background(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))
		}
		for i := range 4 {
			extra(fmt.Sprint("extra-", i))
		}
		h.After(30 * time.Second)
		w := h.Writes()
		if c, d := strings.Count(w, "create"), strings.Count(w, "delete"); c != 4 || d != 4 {
			t.Errorf("four too many: exactly four are deleted and none is made anew, however late the cache is:\n%s", w)
		}
	})
	if most.Load() > 2 {
		t.Errorf("%d passes at once for two keys", most.Load())
	}
}

func TestUndeclaredWriteFails(t *testing.T) {
	var got error
	row := runtime.Row{Name: "liar", Reads: []string{"namespaces"}, New: func(e *runtime.Env) error {
		q := e.Keyed("", 1, func(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
			_, got = runtime.Create(ctx, p, e.Client().CoreV1().ConfigMaps("a"), &corev1.ConfigMap{})
			return runtime.Result{}, runtime.Permanent(got)
		})
		runtime.On(q, runtime.Read[*corev1.Namespace](e), runtime.Self[*corev1.Namespace])
		return nil
	}}
	ctrltest.Test(t, []runtime.Row{row}, []kruntime.Object{namespace("a")}, func(t *testing.T, h *ctrltest.Harness) {
		if w := h.Writes(); got == nil || w != "" {
			t.Errorf("want an error and no write, got %v and %q", got, w)
		}
	})
}

func TestUndeclaredReadPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("reading an undeclared kind must not go unnoticed")
		}
	}()
	row := runtime.Row{Name: "liar", New: func(e *runtime.Env) error { runtime.Read[*corev1.Pod](e); return nil }}
	_, _ = runtime.New([]runtime.Row{row}, runtime.Options{})
}

func TestFailuresAreRetriedAndPanicsSurvived(t *testing.T) {
	var tries atomic.Int32
	row := runtime.Row{Name: "clumsy", Reads: []string{"namespaces"}, New: func(e *runtime.Env) error {
		q := e.Keyed("", 1, func(context.Context, *runtime.Pass) (runtime.Result, error) {
			switch tries.Add(1) {
			case 1:
				return runtime.Result{}, errors.New("once")
			case 2:
				panic("twice")
			case 3:
				return runtime.Result{Again: e.Now().Add(time.Minute)}, nil
			}
			return runtime.Result{}, nil
		})
		runtime.On(q, runtime.Read[*corev1.Namespace](e), runtime.Self[*corev1.Namespace])
		return nil
	}}
	ctrltest.Test(t, []runtime.Row{row}, []kruntime.Object{namespace("a")}, func(t *testing.T, h *ctrltest.Harness) {
		if n := tries.Load(); n != 3 {
			t.Errorf("want an error, a panic and a success, got %d passes", n)
		}
		h.After(time.Minute)
		if n := tries.Load(); n != 4 {
			t.Errorf("want one more pass after a minute, got %d", n)
		}
	})
}

func TestBatchesStopAtTheFirstFailure(t *testing.T) {
	var calls atomic.Int32
	done, err := runtime.Together(context.Background(), 1000, func(_ context.Context, i int) error {
		calls.Add(1)
		if i >= 5 {
			return errors.New("quota")
		}
		return nil
	})
	if err == nil || done != 5 || calls.Load() != 7 { // 1 + 2 + 4
		t.Errorf("want 5 done of 7 tried, got %d of %d, %v", done, calls.Load(), err)
	}
	if done, err := runtime.Together(context.Background(), 1000, func(context.Context, int) error { return nil }); err != nil || done != 1000 {
		t.Errorf("want 1000 done, got %d, %v", done, err)
	}
}

func TestReadObjects(t *testing.T) {
	in, err := runtime.ReadObjects(strings.NewReader("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: p, namespace: a}}\n"))
	if err != nil || len(runtime.Pick[*corev1.Pod](in)) != 1 || len(runtime.Pick[*corev1.Namespace](in)) != 1 {
		t.Errorf("read %v, %v", in, err)
	}
	if _, err := runtime.ReadObjects(strings.NewReader("kind: Nonsense\napiVersion: v1\n")); err == nil {
		t.Error("an unknown kind must be an error")
	}
}

func TestLostLeadershipEndsTheManager(t *testing.T) {
	var passes, most atomic.Int32
	synctest.Test(t, func(t *testing.T) {
		m, err := runtime.New([]runtime.Row{three(&passes, &most)}, runtime.Options{Client: ctrltest.Client(), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		terms := 0
		err = m.Run(context.Background(), func(ctx context.Context, lead func(context.Context) error) error {
			for ctx.Err() == nil { // as an elector does: stand again
				terms++
				term, cancel := context.WithTimeout(ctx, time.Second)
				_ = lead(term)
				cancel()
			}
			return nil
		})
		if !errors.Is(err, runtime.ErrLost) || terms != 1 {
			t.Errorf("want ErrLost after one term, got %v after %d", err, terms)
		}
		time.Sleep(time.Hour) // timers of client-go end by themselves
	})
}

func TestSettings(t *testing.T) {
	for _, c := range []struct {
		change func(*runtime.Settings)
		want   string
	}{
		{func(*runtime.Settings) {}, ""},
		{func(s *runtime.Settings) { s.LegacyTokenCleanUp.Duration = 0 }, `legacyServiceAccountTokenCleanUpPeriod: Invalid value: "0s": must be greater than zero`},
	} {
		s := runtime.DefaultSettings()
		c.change(&s)
		got := ""
		if err := s.Validate(nil).ToAggregate(); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("want %q, got %q", c.want, got)
		}
	}
}
