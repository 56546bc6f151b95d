package lease

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/keelson/keelson/libs/log"
	"github.com/keelson/keelson/libs/testkit"
)

func TestStandbyTakesOverAfterACleanStop(t *testing.T) {
	c := fake.NewClientset()
	cfg := Default("keelson-test")
	var leaders, most atomic.Int32
	lead := func(ctx context.Context) error {
		most.Store(max(most.Load(), leaders.Add(1)))
		<-ctx.Done()
		leaders.Add(-1)
		return nil
	}
	actx, stopA := context.WithCancel(t.Context())
	aDone, bDone := make(chan error, 1), make(chan error, 1)
	go func() { aDone <- Run(actx, cfg, c, "a", log.Discard(), lead) }()
	testkit.Eventually(t, 5*time.Second, func() (bool, string) { return leaders.Load() == 1, "a does not lead" })

	bctx, stopB := context.WithCancel(t.Context())
	defer stopB()
	go func() { bDone <- Run(bctx, cfg, c, "b", log.Discard(), lead) }()
	stopA()
	if err := <-aDone; err != nil {
		t.Errorf("a: %v", err)
	}
	start := time.Now()
	testkit.Eventually(t, 3*time.Second, func() (bool, string) { return leaders.Load() == 1, "b does not lead" })
	t.Logf("b led %s after a had ended", time.Since(start).Round(time.Millisecond))
	stopB()
	if err := <-bDone; err != nil {
		t.Errorf("b: %v", err)
	}
	if most.Load() != 1 {
		t.Errorf("%d leaders at once", most.Load())
	}
}

func TestALostLeaseIsStoodForAgain(t *testing.T) {
	c := fake.NewClientset()
	var broken atomic.Bool
	fail := func(k8stesting.Action) (bool, runtime.Object, error) {
		if broken.Load() {
			return true, nil, errors.New("the API server is away")
		}
		return false, nil, nil
	}
	c.PrependReactor("*", "leases", fail)
	cfg := Default("keelson-test")
	cfg.LeaseDuration.Duration, cfg.RenewDeadline.Duration, cfg.RetryPeriod.Duration = time.Second, 300*time.Millisecond, 50*time.Millisecond
	var terms atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, cfg, c, "a", log.Discard(), func(ctx context.Context) error {
			terms.Add(1)
			<-ctx.Done()
			broken.Store(false)
			return ctx.Err()
		})
	}()
	testkit.Eventually(t, 5*time.Second, func() (bool, string) { return terms.Load() == 1, "no first term" })
	broken.Store(true)
	testkit.Eventually(t, 5*time.Second, func() (bool, string) { return terms.Load() == 2, "no second term" })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestLeadThatEndsEndsRun(t *testing.T) {
	boom := errors.New("boom")
	for _, elect := range []bool{true, false} {
		cfg := Default("keelson-test")
		cfg.LeaderElect = elect
		if err := Run(t.Context(), cfg, fake.NewClientset(), "a", log.Discard(), func(context.Context) error { return boom }); !errors.Is(err, boom) {
			t.Errorf("elect %v: got %v", elect, err)
		}
	}
}

func TestValidate(t *testing.T) {
	ok := Default("x")
	if errs := ok.Validate(); len(errs) != 0 {
		t.Errorf("default: %v", errs)
	}
	for name, change := range map[string]func(*Config){
		"broken seconds":    func(c *Config) { c.LeaseDuration = metav1.Duration{Duration: 2500 * time.Millisecond} },
		"deadline too long": func(c *Config) { c.RenewDeadline = c.LeaseDuration },
		"period too long":   func(c *Config) { c.RetryPeriod = c.RenewDeadline },
		"no name":           func(c *Config) { c.ResourceName = "" },
	} {
		c := Default("x")
		change(&c)
		if len(c.Validate()) == 0 {
			t.Errorf("%s: accepted", name)
		}
	}
}
