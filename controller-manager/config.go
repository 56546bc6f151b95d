// Package controllermanager is the daemon that brings the cluster's state to what
// its objects ask for: it runs the table of controllers over shared caches.
//
// The main call is [Run]. The controllers are in controllers/table.go, what they
// run on is package runtime (start reading there), cmd/ parses flags.
//
// One API identity serves all controllers: the user of the kubeconfig, usually
// system:kube-controller-manager. --use-service-account-credentials is accepted so
// that existing unit files work, and changes nothing yet; what each controller
// needs is declared by its row (runtime.Row.Rules).
//
// Of several copies one leads. The others keep their caches warm, so that a
// successor starts deciding at once.
package controllermanager

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/keelson/keelson/controller-manager/controllers"
	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/client"
	"github.com/keelson/keelson/libs/config"
	"github.com/keelson/keelson/libs/lease"
	"github.com/keelson/keelson/libs/run"
	"github.com/keelson/keelson/libs/serve"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

// Config is the daemon's configuration.
type Config struct {
	config.Common `yaml:",inline"`
	Client        client.Config    `yaml:",inline"`
	Serve         serve.Config     `yaml:",inline"`
	Lease         lease.Config     `yaml:",inline"`
	Settings      runtime.Settings `yaml:",inline"`

	// Controllers are names, "-name" for off, "*" for all that are on by default.
	Controllers []string `yaml:"controllers" flag:"controllers" help:"controllers to run: names, -name for off, * for all that are on by default"`

	// SeparateIdentities is accepted and does nothing: see the package comment.
	SeparateIdentities bool `yaml:"useServiceAccountCredentials" flag:"use-service-account-credentials" help:"accepted for compatibility; all controllers use the kubeconfig's identity"`

	AuthenticationKubeconfig string `yaml:"authenticationKubeconfig" flag:"authentication-kubeconfig" help:"accepted for compatibility; callers are checked with the kubeconfig's identity"`
	AuthorizationKubeconfig  string `yaml:"authorizationKubeconfig" flag:"authorization-kubeconfig" help:"accepted for compatibility; callers are checked with the kubeconfig's identity"`
}

// Default is upstream's default where there is one.
func Default() Config {
	c := Config{
		Common:      config.DefaultCommon(),
		Serve:       serve.Config{BindAddress: "0.0.0.0", Port: 10257},
		Lease:       lease.Default("kube-controller-manager"),
		Settings:    runtime.DefaultSettings(),
		Controllers: []string{"*"},
	}
	return c
}

// Validate reports every fault.
func (c Config) Validate() field.ErrorList {
	all := c.Client.Validate()
	all = append(all, c.Serve.Validate()...)
	all = append(all, c.Lease.Validate()...)
	all = append(all, c.Settings.Validate(nil)...)
	if _, err := runtime.Select(controllers.Table, c.Controllers); err != nil {
		all = append(all, field.Invalid(field.NewPath("controllers"), strings.Join(c.Controllers, ","), err.Error()))
	}
	return all
}

// Run runs the daemon until ctx ends or something fails for good.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	cfg.Client.Metrics = client.NewMetrics()
	api, rc, err := client.New(cfg.Client, "kube-controller-manager")
	if err != nil {
		return err
	}
	server, err := serve.New(cfg.Serve, log)
	if err != nil {
		return err
	}
	server.Registry().MustRegister(cfg.Client.Metrics)
	rows, err := runtime.Select(controllers.Table, cfg.Controllers)
	if err != nil {
		return err
	}
	manager, err := runtime.New(rows, runtime.Options{Client: api, REST: rc, Log: log, Settings: cfg.Settings, Metrics: server.Registry()})
	if err != nil {
		return err
	}
	server.Check("caches", manager.Warm)
	server.Debug("controllers", func() any { return manager.State() })
	server.Configz("kubecontrollermanager.config.k8s.io", cfg)
	if d := serve.Delegated(api, cfg.Serve.ClientCAFile); d != nil {
		server.Authorize(d)
	}

	g := run.New(ctx)
	g.Go("serve", server.Run)
	g.Go("controllers", func(ctx context.Context) error {
		defer g.Stop()
		return manager.Run(ctx, func(ctx context.Context, lead func(context.Context) error) error {
			return lease.Run(ctx, cfg.Lease, api, lease.ID(), log, server.Leading(cfg.Lease.ResourceName, lead))
		})
	})
	return g.Wait()
}

// Commands are what the binary can do besides running.
var Commands = []config.Command{
	{Name: "plan", Short: "print what a controller would do about the objects of a file: plan CONTROLLER FILE", Run: plan},
	{Name: "graph", Short: "print which controllers read and write what, as DOT", Run: func(_ context.Context, _ []string, out io.Writer) error {
		_, err := io.WriteString(out, runtime.Graph(controllers.Table))
		return err
	}},
	{Name: "rbac", Short: "print the ClusterRole that the controllers' identity needs, as YAML", Run: func(_ context.Context, _ []string, out io.Writer) error {
		data, err := yaml.Marshal(ClusterRole())
		if err != nil {
			return err
		}
		_, err = out.Write(data)
		return err
	}},
}

// ClusterRole is what the one identity of all controllers must be allowed: the
// rules of every row, leader election, and asking who calls the daemon's own port.
func ClusterRole() *rbacv1.ClusterRole {
	role := &rbacv1.ClusterRole{
		TypeMeta:   metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "ClusterRole"},
		ObjectMeta: metav1.ObjectMeta{Name: "system:kube-controller-manager"},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"create", "get", "list", "watch", "update", "patch"}},
			{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"}},
			{APIGroups: []string{"authorization.k8s.io"}, Resources: []string{"subjectaccessreviews"}, Verbs: []string{"create"}},
		},
	}
	for _, r := range controllers.Table {
		for _, rule := range r.Rules() {
			if !slices.ContainsFunc(role.Rules, func(o rbacv1.PolicyRule) bool { return reflect.DeepEqual(o, rule) }) {
				role.Rules = append(role.Rules, rule)
			}
		}
	}
	return role
}

func plan(_ context.Context, args []string, out io.Writer) error {
	if len(args) != 2 {
		return config.Usage(fmt.Errorf("plan needs a controller and a file (- is standard input)"))
	}
	rows, err := runtime.Select(controllers.Table, args[:1])
	if err != nil {
		return config.Usage(err)
	}
	in := os.Stdin
	if args[1] != "-" {
		f, err := os.Open(args[1])
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	objects, err := runtime.ReadObjects(in)
	if err != nil {
		return fmt.Errorf("%s: %w", args[1], err)
	}
	for _, r := range rows {
		if r.Plan == nil {
			return config.Usage(fmt.Errorf("%s has no decision that can be run on a file", r.Name))
		}
		lines, err := r.Plan(objects, time.Now())
		if err != nil {
			return err
		}
		if len(lines) == 0 {
			fmt.Fprintf(out, "%s: nothing to do\n", r.Name)
		}
		for _, l := range lines {
			fmt.Fprintln(out, l)
		}
	}
	return nil
}
