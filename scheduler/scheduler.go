// Package scheduler is the front door of the daemon that gives pods their nodes: its configuration and
// its wiring. Run is the daemon; Plan decides offline, on a file of objects.
//
// The rooms: package bind observes, runs the loop and writes; package cycle decides; package plugins has
// the rules; package queue says whose turn it is; package cache keeps the picture that decisions read;
// package framework is the contract between them.
package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/libs/client"
	"github.com/keelson/keelson/libs/config"
	"github.com/keelson/keelson/libs/lease"
	"github.com/keelson/keelson/libs/run"
	"github.com/keelson/keelson/libs/serve"
	"github.com/keelson/keelson/scheduler/bind"
	"github.com/keelson/keelson/scheduler/framework"
	"github.com/keelson/keelson/scheduler/queue"
)

// Config of the daemon. Field names are those of KubeSchedulerConfiguration where it has them.
type Config struct {
	config.Common  `yaml:",inline"`
	Serving        serve.Config  `yaml:",inline"`
	Client         client.Config `yaml:"clientConnection"`
	LeaderElection lease.Config  `yaml:"leaderElection"`

	PodInitialBackoffSeconds int64           `yaml:"podInitialBackoffSeconds" flag:"pod-initial-backoff-seconds" help:"pause after a pod's first failed attempt"`
	PodMaxBackoffSeconds     int64           `yaml:"podMaxBackoffSeconds" flag:"pod-max-backoff-seconds" help:"longest pause between attempts of one pod"`
	StayUnschedulable        metav1.Duration `yaml:"podMaxInUnschedulablePodsDuration" flag:"pod-max-in-unschedulable-pods-duration" help:"time after which an unschedulable pod is tried again without an event"`
	Parallelism              int             `yaml:"parallelism" flag:"parallelism" help:"binds in flight at once"`
	Profiles                 []Profile       `yaml:"profiles"`
}

// Profile is what a pod chooses with spec.schedulerName. There is one for now.
type Profile struct {
	SchedulerName                      string                            `yaml:"schedulerName"`
	HardPodAffinityWeight              int64                             `yaml:"hardPodAffinityWeight"`
	IgnorePreferredTermsOfExistingPods bool                              `yaml:"ignorePreferredTermsOfExistingPods"`
	DefaultingType                     string                            `yaml:"defaultingType"` // of spread constraints: System or List
	DefaultConstraints                 []corev1.TopologySpreadConstraint `yaml:"defaultConstraints"`
}

// Default is the configuration without flags and file.
func Default() Config {
	return Config{
		Common:                   config.DefaultCommon(),
		Serving:                  serve.Config{BindAddress: "0.0.0.0", Port: 10259},
		LeaderElection:           lease.Default("kube-scheduler"),
		PodInitialBackoffSeconds: 1,
		PodMaxBackoffSeconds:     10,
		StayUnschedulable:        metav1.Duration{Duration: 5 * time.Minute},
		Parallelism:              64,
		Profiles:                 []Profile{DefaultProfile()},
	}
}

// DefaultProfile has kube-scheduler's defaults.
func DefaultProfile() Profile {
	return Profile{SchedulerName: corev1.DefaultSchedulerName, HardPodAffinityWeight: 1, DefaultingType: "System"}
}

// Validate finds everything that is wrong.
func (c Config) Validate() field.ErrorList {
	errs := c.Serving.Validate()
	inside := func(path string, faults field.ErrorList) {
		for _, f := range faults {
			f.Field = path + "." + f.Field
			errs = append(errs, f)
		}
	}
	inside("clientConnection", c.Client.Validate())
	inside("leaderElection", c.LeaderElection.Validate())
	bad := func(path string, v any, why string) { errs = append(errs, field.Invalid(field.NewPath(path), v, why)) }
	if c.PodInitialBackoffSeconds < 1 {
		bad("podInitialBackoffSeconds", c.PodInitialBackoffSeconds, "must be at least 1")
	}
	if c.PodMaxBackoffSeconds < c.PodInitialBackoffSeconds {
		bad("podMaxBackoffSeconds", c.PodMaxBackoffSeconds, "must be at least podInitialBackoffSeconds")
	}
	if c.StayUnschedulable.Duration < time.Second {
		bad("podMaxInUnschedulablePodsDuration", c.StayUnschedulable.Duration.String(), "must be at least 1s")
	}
	if c.Parallelism < 1 || c.Parallelism > 4096 {
		bad("parallelism", c.Parallelism, "must be between 1 and 4096")
	}
	if len(c.Profiles) != 1 {
		bad("profiles", len(c.Profiles), "must be exactly one")
	}
	for i, p := range c.Profiles {
		at := fmt.Sprintf("profiles[%d].", i)
		if p.SchedulerName == "" {
			bad(at+"schedulerName", p.SchedulerName, "must be set")
		}
		if p.HardPodAffinityWeight < 0 || p.HardPodAffinityWeight > 100 {
			bad(at+"hardPodAffinityWeight", p.HardPodAffinityWeight, "must be between 0 and 100")
		}
		if p.DefaultingType != "System" && p.DefaultingType != "List" {
			bad(at+"defaultingType", p.DefaultingType, "must be System or List")
		}
		if p.DefaultingType == "System" && len(p.DefaultConstraints) > 0 {
			bad(at+"defaultConstraints", len(p.DefaultConstraints), "must be empty when defaultingType is System")
		}
	}
	return errs
}

func (p Profile) args() framework.Args {
	return framework.Args{
		HardPodAffinityWeight: p.HardPodAffinityWeight, DefaultingType: p.DefaultingType,
		DefaultConstraints: p.DefaultConstraints, IgnorePreferredTermsOfExistingPods: p.IgnorePreferredTermsOfExistingPods,
	}
}

// Run is the daemon.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	cfg.Client.Metrics = client.NewMetrics()
	api, _, err := client.New(cfg.Client, "keelson-scheduler")
	if err != nil {
		return config.Usage(err)
	}
	server, err := serve.New(cfg.Serving, log)
	if err != nil {
		return config.Usage(err)
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	profile := cfg.Profiles[0]
	s := bind.New(bind.Config{
		SchedulerName: profile.SchedulerName,
		Binders:       cfg.Parallelism,
		Queue: queue.Config{
			InitialBackoff:    time.Duration(cfg.PodInitialBackoffSeconds) * time.Second,
			MaxBackoff:        time.Duration(cfg.PodMaxBackoffSeconds) * time.Second,
			StayUnschedulable: cfg.StayUnschedulable.Duration,
		},
		Args:     profile.args(),
		Instance: profile.SchedulerName + "-" + host,
		Seed:     uint64(time.Now().UnixNano()),
	}, api, bind.NewMetrics(server.Registry()), log)
	server.Registry().MustRegister(s, cfg.Client.Metrics)
	server.Check("caches", s.Ready)
	server.LiveCheck("loop", s.Alive)
	server.Debug("queue", s.QueueLengths)
	server.Debug("pending", s.Pending)
	server.Debug("nodes", s.Nodes)
	server.Configz("kubescheduler.config.k8s.io", cfg)
	server.Authorize(serve.Delegated(api, cfg.Serving.ClientCAFile))

	g := run.New(ctx)
	g.Go("serve", server.Run)
	lead := server.Leading(cfg.LeaderElection.ResourceName, s.Lead)
	// The rooms outlive the lead, so that the binds of its last moment are finished.
	rooms := run.New(context.WithoutCancel(ctx))
	rooms.Go("scheduler", s.Run)
	context.AfterFunc(rooms.Context(), g.Stop)
	g.Go("leader election", func(ctx context.Context) error {
		defer rooms.Stop()
		return lease.Run(ctx, cfg.LeaderElection, api, lease.ID(), log, lead)
	})
	err = g.Wait()
	rooms.Stop()
	if e := rooms.Wait(); err == nil {
		err = e
	}
	return err
}
