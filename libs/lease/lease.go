// Package lease elects one leader among the copies of a daemon, over a coordination/v1 Lease.
//
// The main call is [Run]. It uses client-go's leaderelection.
//
// It promises: the context given to lead ends before another copy may believe that it leads, as far
// as clocks run at the same speed; after a lost lease Run waits for lead to return and then stands for
// election again, so that a short absence of the API server costs no restart and no cold cache; when
// its own context ends, the lease is given back, and a standby takes it at its next look.
//
// With the defaults a standby leads at most RetryPeriod (1 s) after a clean stop and at most
// LeaseDuration plus RetryPeriod (4 s) after a crash. The price is one write a second by the leader
// and one read a second by each standby.
//
// lead is called again on each election, one call at a time; it must return when its context ends.
package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/keelson/keelson/libs/run"
)

// Config has the names of upstream's flags.
type Config struct {
	LeaderElect       bool            `yaml:"leaderElect" flag:"leader-elect" help:"run only while holding the lease, so that several copies can stand by"`
	LeaseDuration     metav1.Duration `yaml:"leaseDuration" flag:"leader-elect-lease-duration" help:"how long a standby waits for a leader that is silent; whole seconds"`
	RenewDeadline     metav1.Duration `yaml:"renewDeadline" flag:"leader-elect-renew-deadline" help:"how long the leader tries to renew before it stops leading"`
	RetryPeriod       metav1.Duration `yaml:"retryPeriod" flag:"leader-elect-retry-period" help:"time between two tries to take or renew the lease"`
	ResourceNamespace string          `yaml:"resourceNamespace" flag:"leader-elect-resource-namespace" help:"namespace of the lease"`
	ResourceName      string          `yaml:"resourceName" flag:"leader-elect-resource-name" help:"name of the lease"`
}

// Default is the configuration of the daemon with this name: 3 s, 2 s and 1 s.
func Default(name string) Config {
	return Config{
		LeaderElect:       true,
		LeaseDuration:     metav1.Duration{Duration: 3 * time.Second},
		RenewDeadline:     metav1.Duration{Duration: 2 * time.Second},
		RetryPeriod:       metav1.Duration{Duration: time.Second},
		ResourceNamespace: metav1.NamespaceSystem,
		ResourceName:      name,
	}
}

// Validate checks what client-go would refuse, in words of the configuration.
func (c Config) Validate() field.ErrorList {
	var errs field.ErrorList
	if !c.LeaderElect {
		return nil
	}
	bad := func(name string, v any, why string) { errs = append(errs, field.Invalid(field.NewPath(name), v, why)) }
	if c.LeaseDuration.Duration < time.Second || c.LeaseDuration.Duration%time.Second != 0 {
		bad("leaseDuration", c.LeaseDuration.Duration.String(), "must be whole seconds, at least 1s")
	}
	if c.RenewDeadline.Duration >= c.LeaseDuration.Duration {
		bad("renewDeadline", c.RenewDeadline.Duration.String(), "must be less than leaseDuration")
	}
	if c.RetryPeriod.Duration <= 0 || float64(c.RenewDeadline.Duration) <= leaderelection.JitterFactor*float64(c.RetryPeriod.Duration) {
		bad("retryPeriod", c.RetryPeriod.Duration.String(), "must be more than 0, and 1.2 times it less than renewDeadline")
	}
	if c.ResourceName == "" || c.ResourceNamespace == "" {
		bad("resourceName", c.ResourceNamespace+"/"+c.ResourceName, "name and namespace of the lease must be set")
	}
	return errs
}

// ID is a name for this copy that no other copy has: host name and a random part.
func ID() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return host + "_" + string(uuid.NewUUID())
}

// Run calls lead while this copy, known to the others as id, holds the lease. It returns when ctx
// ends (nil, or what lead returned), or when lead returns while it leads (that error, nil included).
// Without LeaderElect it is lead(ctx).
func Run(ctx context.Context, cfg Config, c kubernetes.Interface, id string, log *slog.Logger, lead func(ctx context.Context) error) error {
	if !cfg.LeaderElect {
		return lead(ctx)
	}
	log = log.With("lease", cfg.ResourceNamespace+"/"+cfg.ResourceName, "id", id)
	for {
		done, err := term(ctx, cfg, c, id, log, lead)
		if done || ctx.Err() != nil {
			if ctx.Err() != nil && errors.Is(err, context.Canceled) {
				err = nil
			}
			return err
		}
		log.Warn("lost the lease; standing for election again", "err", err)
	}
}

// term is one election and what follows. done means that lead ended by itself.
func term(ctx context.Context, cfg Config, c kubernetes.Interface, id string, log *slog.Logger, lead func(ctx context.Context) error) (done bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		mu      sync.Mutex // guards started and over
		started bool
		over    bool
		ended   bool // written before result is sent
		result  = make(chan error, 1)
	)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: cfg.ResourceNamespace, Name: cfg.ResourceName},
			Client:     c.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: id},
		},
		LeaseDuration: cfg.LeaseDuration.Duration,
		RenewDeadline: cfg.RenewDeadline.Duration,
		RetryPeriod:   cfg.RetryPeriod.Duration,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(lctx context.Context) {
				mu.Lock()
				if over {
					mu.Unlock()
					return // lost before this goroutine ran
				}
				started = true
				mu.Unlock()
				log.Info("leading")
				err := run.Safely("leading", func() error { return lead(lctx) })
				ended = lctx.Err() == nil
				result <- err
				cancel() // gives the lease back
			},
			OnStoppedLeading: func() {},
			OnNewLeader: func(leader string) {
				if leader != id {
					log.Info("standing by", "leader", leader)
				}
			},
		},
		// Releasing waits for nothing: Run below returns only after lead has. A lease that is given
		// back while lead still runs would allow two leaders, so lead's end is awaited first.
		ReleaseOnCancel: false,
		Name:            cfg.ResourceName,
	})
	if err != nil {
		return true, fmt.Errorf("leader election: %w", err)
	}
	elector.Run(ctx)
	mu.Lock()
	over = true
	mu.Unlock()
	if started {
		err = <-result
		release(cfg, c, id, log)
	}
	return ended, err
}

// release gives the lease back if it is still ours, so that a standby need not wait for it to run out.
func release(cfg Config, c kubernetes.Interface, id string, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), cfg.RenewDeadline.Duration)
	defer cancel()
	leases := c.CoordinationV1().Leases(cfg.ResourceNamespace)
	l, err := leases.Get(ctx, cfg.ResourceName, metav1.GetOptions{})
	if err != nil || l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity != id {
		return
	}
	now := metav1.NewMicroTime(time.Now())
	empty, second := "", int32(1)
	l = l.DeepCopy()
	l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds, l.Spec.RenewTime, l.Spec.AcquireTime = &empty, &second, &now, &now
	if _, err := leases.Update(ctx, l, metav1.UpdateOptions{}); err != nil && !apierrors.IsConflict(err) {
		log.Warn("could not give the lease back; a standby waits for it to run out", "err", err)
	}
}
