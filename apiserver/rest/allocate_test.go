package rest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/resources/alloc"
	"github.com/keelson/keelson/apiserver/store/memory"
	"github.com/keelson/keelson/apiserver/watchcache"
)

// peers are API servers, without HTTP, over one store.
func peers(t *testing.T, st *memory.Store, cfg resources.Config, n int) []*Objects {
	t.Helper()
	var out []*Objects
	for range n {
		reg, err := resources.NewRegistry(resources.TableFor(cfg))
		if err != nil {
			t.Fatal(err)
		}
		cache := watchcache.New(st, reg, watchcache.Options{})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = cache.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
		<-cache.Ready()
		out = append(out, NewObjects(reg, cache, st, nil, nil))
	}
	return out
}

// Several servers hand out addresses and ports of small ranges at the same time, some of their writes
// fail or are given up half-way, and in the end each address and each port has one owner and
// nothing is taken that nobody has.
func TestServersShareRanges(t *testing.T) {
	cfg := resources.DefaultConfig()
	cfg.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/26"), netip.MustParsePrefix("fd00::/122")}
	cfg.NodePorts = resources.PortRange{First: 30000, Last: 30063}
	st := memory.New()
	servers := peers(t, st, cfg, 3)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	broken := errors.New("the disk is gone")
	var mu sync.Mutex
	dice := rand.New(rand.NewPCG(1, 2))
	st.Fail(func(call, key string) error {
		mu.Lock()
		defer mu.Unlock()
		if call == "put" && dice.IntN(20) == 0 {
			return broken
		}
		return nil
	})
	services := servers[0].reg.Storage(schema.GroupResource{Resource: "services"})
	var wg sync.WaitGroup
	for w := range 9 {
		o, dice := servers[w%len(servers)], rand.New(rand.NewPCG(7, uint64(w)))
		row := o.reg.Storage(services.GR())
		wg.Go(func() {
			var mine []string
			for i := range 40 {
				short, stop := context.WithCancel(ctx)
				if dice.IntN(10) == 0 {
					stop() // the client has gone
				}
				if len(mine) > 4 || dice.IntN(4) == 0 && len(mine) > 0 {
					name := mine[0]
					_, _, err := o.Delete(short, nil, row, "d", name, nil)
					if err == nil || apierrors.IsNotFound(err) {
						mine = mine[1:]
					}
					stop()
					continue
				}
				s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: fmt.Sprintf("s%d-%d", w, i)}}
				s.Spec.Selector = map[string]string{"a": "b"}
				s.Spec.Ports = []corev1.ServicePort{{Name: "a", Port: 80}}
				if dice.IntN(2) == 0 {
					s.Spec.Type = corev1.ServiceTypeNodePort
				}
				if dice.IntN(3) == 0 {
					policy := corev1.IPFamilyPolicyRequireDualStack
					s.Spec.IPFamilyPolicy = &policy
				}
				if dice.IntN(5) == 0 { // many want the same
					s.Spec.ClusterIP = fmt.Sprintf("10.96.0.%d", 1+dice.IntN(3))
				}
				row.Default(s)
				_, err := o.Create(short, nil, row, s, WriteOptions{})
				if err == nil {
					mine = append(mine, s.Name)
				} else if short.Err() == nil && !apierrors.IsInvalid(err) && !apierrors.IsInternalError(err) {
					t.Errorf("create %s: %v", s.Name, err)
				}
				stop()
			}
		})
	}
	wg.Wait()
	st.Fail(nil)

	read := servers[0]
	if _, err := read.cache.Fresh(ctx); err != nil {
		t.Fatal(err)
	}
	owners, ports := map[string]string{}, map[int32]string{}
	own := func(s *corev1.Service) error {
		for _, ip := range s.Spec.ClusterIPs {
			if other, ok := owners[ip]; ok {
				return fmt.Errorf("%s and %s share %s", other, s.Name, ip)
			}
			owners[ip] = s.Name
		}
		for _, p := range s.Spec.Ports {
			if other, ok := ports[p.NodePort]; ok && p.NodePort != 0 {
				return fmt.Errorf("%s and %s share port %d", other, s.Name, p.NodePort)
			}
			if p.NodePort != 0 {
				ports[p.NodePort] = s.Name
			}
		}
		return nil
	}
	tree := read.cache.Reader()
	each := func(gr schema.GroupResource, f func(resources.Object)) {
		t.Helper()
		if err := tree.Each(gr, "", func(o resources.Object) bool { f(o); return true }); err != nil {
			t.Fatal(err)
		}
	}
	each(services.GR(), func(o resources.Object) {
		if err := own(o.(*corev1.Service)); err != nil {
			t.Error(err)
		}
	})
	if len(owners) < 10 || len(ports) < 3 {
		t.Fatalf("%d addresses and %d ports in the end: the test has shown little", len(owners), len(ports))
	}
	each(schema.GroupResource{Group: "networking.k8s.io", Resource: "ipaddresses"}, func(o resources.Object) {
		a := o.(*networkingv1.IPAddress)
		if owners[a.Name] != a.Spec.ParentRef.Name || a.UID == "" || a.CreationTimestamp.IsZero() {
			t.Errorf("address %s is of %q and held by %q (uid %q)", a.Name, a.Spec.ParentRef.Name, owners[a.Name], a.UID)
		}
		delete(owners, a.Name)
	})
	if len(owners) > 0 {
		t.Errorf("addresses without an object: %v", owners)
	}
	obj, err := tree.Get(schema.GroupResource{Resource: "rangeallocations"}, "", resources.NodePortsName)
	if err != nil || obj == nil {
		t.Fatalf("set of node ports: %v, %v", obj, err)
	}
	r := obj.(*corev1.RangeAllocation)
	set, err := alloc.ReadPorts(30000, 30063, r.Range, r.Data)
	if err != nil {
		t.Fatal(err)
	}
	var want, got []int32
	for n := int32(30000); n <= 30063; n++ {
		if _, ok := ports[n]; ok {
			want = append(want, n)
		}
		if set.Has(n) {
			got = append(got, n)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("ports in the set %v, of services %v", got, want)
	}
}
