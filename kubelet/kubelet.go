// Package kubelet runs the pods of one node: it takes them from the API server and from
// manifests on disk, drives a CRI runtime, and tells the API server how they are.
//
// Run wires the rooms; read it first. A pod's way through them:
//
//	sources ─► worker (one goroutine a pod) ─► pod.Decide (pure) ─► steps
//	              │  volumes, cgroups, images, objects, probes
//	              ▼
//	             cri ─► runtime            status ─► API server
//
// Promises: containers outlive the kubelet, and a kubelet that starts adopts them; what no
// source wants any more is stopped and removed; a pod is deleted at the API server only when
// nothing of it runs. Beside pods there are the node's own matters: registration, lease and
// conditions (node), pressure (eviction, images, oom), the machine's shutdown (shutdown), and the HTTPS server for logs, exec and
// statistics (server).
//
// Debug: /debug/pods, /debug/volumes, /debug/probes, /debug/node, /debug/shutdown on the server; `kubelet plan`
// runs pod.Decide on a file. Tests: critest is a runtime in memory.
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson/keelson/kubelet/cgroups"
	"github.com/keelson/keelson/kubelet/cri"
	"github.com/keelson/keelson/kubelet/criconfig"
	"github.com/keelson/keelson/kubelet/eviction"
	"github.com/keelson/keelson/kubelet/images"
	"github.com/keelson/keelson/kubelet/logs"
	"github.com/keelson/keelson/kubelet/metrics"
	"github.com/keelson/keelson/kubelet/node"
	"github.com/keelson/keelson/kubelet/objects"
	"github.com/keelson/keelson/kubelet/oom"
	"github.com/keelson/keelson/kubelet/pod"
	"github.com/keelson/keelson/kubelet/probes"
	"github.com/keelson/keelson/kubelet/server"
	"github.com/keelson/keelson/kubelet/shutdown"
	"github.com/keelson/keelson/kubelet/sources"
	"github.com/keelson/keelson/kubelet/volumes"
	"github.com/keelson/keelson/kubelet/worker"
	"github.com/keelson/keelson/libs/client"
	"github.com/keelson/keelson/libs/config"
	"github.com/keelson/keelson/libs/informer"
	"github.com/keelson/keelson/libs/run"
)

const symlinkDir = "/var/log/containers"

// Run runs a kubelet until ctx ends. Containers keep running.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	cfg.Config.Metrics = client.NewMetrics()
	api, rc, err := apiClient(cfg, log)
	if err != nil {
		return err
	}
	counts := metrics.New()
	counts.Started(server.BootTime(time.Time{}), time.Now())
	runtime, version, err := dial(ctx, cfg, counts, log)
	if err != nil {
		return err
	}
	defer runtime.Close()
	for _, dir := range []string{cfg.RootDir, filepath.Join(cfg.RootDir, "pods"), cfg.PodLogsDir, symlinkDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("directory of the kubelet: %w", err)
		}
	}
	name, err := node.Name(cfg.Options)
	if err != nil {
		return err
	}
	events, stopEvents := recorder(api, name)
	defer stopEvents()

	thresholds, err := eviction.Parse(cfg.Eviction)
	if err != nil {
		return config.Usage(err)
	}
	var pool *worker.Pool
	var guard *eviction.Manager
	var down *shutdown.Manager
	store := objects.NewStore(api)
	changes := cri.NewChanges(runtime, cfg.RelistPeriod.Duration, log, func(uid types.UID) { pool.Poke(uid) })
	prober := probes.New(execIn(runtime), events, func(uid types.UID) { pool.Think(uid) }, log)
	self, err := node.New(cfg.Options, node.Surroundings{
		Root: cfg.RootDir, Port: int32(cfg.Server.Port), Version: config.Version, Client: api, Runtime: runtime, Images: runtime,
		Events: events, Metrics: counts, Log: log, RuntimeChanged: func() { pool.ThinkAll() }, Healthy: relisting(changes),
		Pressure:     func() (memory, disk, pid bool) { return guard.Conditions() },
		ShuttingDown: func() error { return down.Status() },
		Withheld:     func(capacity corev1.ResourceList) corev1.ResourceList { return eviction.Withheld(thresholds, capacity) },
	})
	if err != nil {
		return err
	}
	groups, err := cgroupTree(ctx, cfg, self.Capacity(), runtime, counts)
	if err != nil {
		return err
	}
	counts.Node(name, groups.V2())
	mounts := volumes.New(volumes.Options{Root: cfg.RootDir, Allocatable: self.Allocatable, Metrics: counts}, api, store, log)
	mirrors := sources.NewMirrors(api, self.Node, func(uid types.UID) { pool.Think(uid) }, log)
	services, servicesKnown := serviceCache(api)
	facts, err := nodeFacts(cfg, name, self, groups)
	if err != nil {
		return err
	}
	pool = worker.New(worker.Options{
		Config: facts, RootDir: cfg.RootDir, SymlinkDir: symlinkDir, HostsFile: "/etc/hosts",
		RuntimeName: version.RuntimeName, MaxBackoff: cfg.MaxRestartPeriod.Duration,
	}, worker.Rooms{
		Log: log, Metrics: counts, Client: api, Runtime: runtime, Observer: cri.NewObserver(runtime, logs.Message), Changes: changes,
		Volumes: mounts, Probes: prober, Node: self, Cgroups: groups, Images: images.NewPuller(runtime, cfg.MaxParallelPulls, counts),
		Objects: store, Events: events, Services: servicesKnown, Handler: runtimeClass(api), Mirror: mirrors.Of,
		Admit: func(p *corev1.Pod) *eviction.Rejection {
			if reason, message := down.Admit(); reason != "" {
				return &eviction.Rejection{Reason: reason, Message: message}
			}
			return guard.Admit(p)
		},
	})
	down = shutdown.New(cfg.Shutdown, shutdown.Surroundings{Root: cfg.RootDir, Pods: pool, Changed: self.Poke, Event: self.Event, Metrics: counts, Log: log,
		Dial: func(ctx context.Context) (shutdown.Logind, error) {
			return shutdown.Dial(ctx, "", "/etc/systemd/logind.conf.d")
		}})
	store.OnChange(pool.UsesObject)
	static := sources.NewStatic(cfg.StaticPodPath, name, pool, mirrors, log)
	stats := server.NewStats(server.StatsOptions{NodeName: name, Root: cfg.RootDir, PodLogs: cfg.PodLogsDir, Runtime: runtime,
		Images: runtime, Pods: pool, Volumes: mounts.Usage, Cgroups: groups, Log: log})
	collector := images.NewCollector(cfg.ImageGC, name, runtime, runtime, events, counts, log)
	guard, err = eviction.New(cfg.Eviction, eviction.Surroundings{NodeName: name, Pods: pool, Summary: stats.Summary, FreeImages: collector.FreeAll,
		Enforced:   slices.Contains(cfg.EnforceAllocatable, "pods"),
		BestEffort: func(p *corev1.Pod) bool { return pod.QOS(p) == corev1.PodQOSBestEffort }, Changed: self.Poke, Metrics: counts, Events: events, Log: log})
	if err != nil {
		return config.Usage(err)
	}
	front, err := server.New(cfg.Server, server.Surroundings{NodeName: name, Pods: pool, Stats: stats, Probes: prober.Collector(),
		Client: api, Runtime: runtime, Log: log})
	if err != nil {
		return err
	}
	front.Registry().MustRegister(cfg.Config.Metrics, counts, pool, mounts, stats,
		metrics.CertificateLife("client", func() (time.Time, bool) { return client.CertificateEnds(rc) }),
		metrics.CertificateLife("server", front.CertificateEnds))
	front.Configz("kubeletconfig", cfg)
	for room, f := range map[string]func() any{"pods": pool.Debug, "volumes": mounts.Debug, "probes": prober.Debug, "node": self.Debug,
		"eviction": guard.Debug, "images": collector.Debug, "shutdown": down.Debug} {
		front.Debug(room, f)
	}
	front.LiveCheck("syncloop", relisting(changes))
	limit := resource.MustParse(cfg.ContainerLogMaxSize)
	rotator := logs.NewRotator(logs.Options{Root: cfg.PodLogsDir, MaxSizeBytes: limit.Value(), MaxFiles: cfg.ContainerLogMaxFiles,
		Period: cfg.ContainerLogMonitor.Duration}, runtime, log)

	g := run.New(ctx)
	g.Go("server", front.Run)
	g.Go("node", self.Run)
	g.Go("volumes", mounts.Run)
	g.Go("probes", prober.Run)
	g.Go("objects", store.Run)
	g.Go("pods", pool.Run)
	g.Go("runtime changes", changes.Run)
	g.Go("log rotation", rotator.Run)
	g.Go("eviction", guard.Run)
	g.Go("image collection", collector.Run)
	g.Go("shutdown", down.Run)
	g.Go("static pods", static.Run)
	g.Go("mirror pods", mirrors.Run)
	synced := []<-chan struct{}{static.Synced()}
	if api != nil {
		pods := sources.API(api, name, pool, mirrors)
		g.Go("pods of the API server", pods.Run)
		g.Go("services", services.Run)
		synced = append(synced, pods.Synced(), services.Synced())
	}
	g.Go("node allocatable", func(ctx context.Context) error {
		room := self.Capacity()
		if slices.Contains(cfg.EnforceAllocatable, "pods") {
			room = self.Unreserved()
		}
		enforce(ctx, room, groups, self)
		return nil
	})
	g.Go("machine out of memory", func(ctx context.Context) error {
		err := oom.Run(ctx, oom.Log, func(v oom.Victim) { self.Event(corev1.EventTypeWarning, "SystemOOM", v.Text()) })
		if err != nil { // some containers and security modules do not show the kernel's log
			log.Warn("it will not be told when the machine has too little memory", "err", err)
		}
		<-ctx.Done()
		return nil
	})
	g.Go("leftovers", func(ctx context.Context) error {
		return cleanUp(ctx, synced, mirrors, pool, mounts, groups, log)
	})
	return g.Wait()
}

// enforce limits all pods together. The kernel refuses a limit below what is in use (cgroup v1): then
// it is tried again, as pods end.
func enforce(ctx context.Context, room corev1.ResourceList, groups *cgroups.Manager, self *node.Manager) {
	for {
		err := groups.Enforce(room)
		switch {
		case err != nil:
			self.Event(corev1.EventTypeWarning, "FailedNodeAllocatableEnforcement",
				fmt.Sprintf("Failed to update Node Allocatable Limits %q: %v", "kubepods", err))
		default:
			self.Event(corev1.EventTypeNormal, "NodeAllocatableEnforced", "Updated Node Allocatable limit across pods")
		}
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Minute):
		}
	}
}

// cleanUp removes what is left of pods that no source wants, once all sources have spoken.
func cleanUp(ctx context.Context, synced []<-chan struct{}, mirrors *sources.Mirrors, pool *worker.Pool, mounts *volumes.Manager, groups *cgroups.Manager, log *slog.Logger) error {
	for _, c := range synced {
		select {
		case <-c:
		case <-ctx.Done():
			return nil
		}
	}
	mirrors.Ready()
	pool.SourcesReady()
	for again := time.Duration(0); ; again = 10 * time.Second {
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return nil
		}
		if err := pool.Adopt(ctx); err != nil {
			log.Warn("looking for leftovers failed", "err", err)
			continue
		}
		keep := pool.UIDs()
		if err := errors.Join(mounts.Prune(ctx, keep), groups.Prune(keep)); err != nil {
			log.Warn("removing leftovers failed", "err", err)
		}
		<-ctx.Done()
		return nil
	}
}

// apiClient is nil without a kubeconfig: such a kubelet runs static pods only.
func apiClient(cfg Config, log *slog.Logger) (kubernetes.Interface, *rest.Config, error) {
	if cfg.Kubeconfig == "" && cfg.Master == "" {
		if cfg.StaticPodPath == "" {
			return nil, nil, config.Usage(errors.New("neither --kubeconfig nor --pod-manifest-path is set: there is nothing to run"))
		}
		log.Info("no kubeconfig: static pods only")
		return nil, nil, nil
	}
	return client.New(cfg.Config, "kubelet")
}

// dial waits for the runtime: both may be starting at the same time.
func dial(ctx context.Context, cfg Config, counts *metrics.Metrics, log *slog.Logger) (*cri.Client, *runtimeapi.VersionResponse, error) {
	c, err := cri.Dial(cfg.ContainerRuntimeEndpoint, cfg.ImageServiceEndpoint, counts)
	if err != nil {
		return nil, nil, config.Usage(err)
	}
	const patience = 2 * time.Minute
	for began := time.Now(); ; {
		v, err := c.Check(ctx)
		if err == nil {
			log.Info("container runtime", "name", v.RuntimeName, "version", v.RuntimeVersion)
			return c, v, nil
		}
		if ctx.Err() != nil || time.Since(began) > patience {
			c.Close()
			return nil, nil, err
		}
		log.Warn("waiting for the container runtime", "endpoint", cfg.ContainerRuntimeEndpoint, "err", err)
		select {
		case <-time.After(min(time.Second, 100*time.Millisecond+time.Since(began))):
		case <-ctx.Done():
		}
	}
}

func cgroupTree(ctx context.Context, cfg Config, capacity corev1.ResourceList, runtime *cri.Client, counts *metrics.Metrics) (*cgroups.Manager, error) {
	driver := cfg.CgroupDriver
	if driver == "" {
		driver = "cgroupfs"
		if answer, err := runtime.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{}); err == nil &&
			answer.GetLinux().GetCgroupDriver() == runtimeapi.CgroupDriver_SYSTEMD && answer.GetLinux() != nil {
			driver = "systemd"
		}
	}
	m, err := cgroups.New(cgroups.Options{Root: cfg.CgroupRoot, Driver: driver, CPUQuota: cfg.CPUCFSQuota,
		CPUQuotaPeriodMicros: cfg.CPUCFSQuotaPeriod.Microseconds(), PodPids: cfg.PodPidsLimit,
		Hugepages: criconfig.HugepageResources(capacity), Metrics: counts})
	if err != nil {
		return nil, err
	}
	if one := cfg.SingleProcessOOMKill; one != nil && !*one && !m.V2() {
		return nil, config.Usage(errors.New("singleProcessOOMKill: false needs cgroup v2, and this machine has v1"))
	}
	return m, m.Init()
}

// nodeFacts is what the node contributes to each pod's configuration.
func nodeFacts(cfg Config, name string, self *node.Manager, groups *cgroups.Manager) (*criconfig.Node, error) {
	text, err := os.ReadFile(cfg.ResolvConf)
	if err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("resolver configuration: %w", err)
	}
	memory := self.Capacity()[corev1.ResourceMemory]
	return &criconfig.Node{
		Name: name, LogRoot: cfg.PodLogsDir, MemoryBytes: memory.Value(), Capacity: self.Capacity(), Allocatable: self.Allocatable(),
		CgroupV2: groups.V2(), SwapLimits: groups.SwapLimits(), SingleProcessOOMKill: cfg.SingleProcessOOMKill != nil && *cfg.SingleProcessOOMKill,
		AllowedUnsafeSysctls: cfg.AllowedUnsafeSysctls, SeccompDefault: cfg.SeccompDefault,
		SeccompRoot: filepath.Join(cfg.RootDir, "seccomp"), CPUQuota: cfg.CPUCFSQuota, CPUQuotaPeriodMicros: cfg.CPUCFSQuotaPeriod.Microseconds(),
		DNS: criconfig.NodeDNS{ClusterServers: cfg.ClusterDNS, ClusterDomain: cfg.ClusterDomain, Host: criconfig.ParseResolvConf(string(text))},
	}, nil
}

// recorder sends events to the API server, when there is one, from a goroutine of its own
// and with upstream's limits.
func recorder(api kubernetes.Interface, name string) (record.EventRecorder, func()) {
	b := record.NewBroadcaster()
	if api != nil {
		b.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: api.CoreV1().Events("")})
	}
	return b.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: name}), b.Shutdown
}

// relisting is nil while the runtime answers.
func relisting(c *cri.Changes) func() error {
	begin := time.Now()
	return func() error {
		const limit = 3 * time.Minute
		last := c.Alive()
		if last.Before(begin) {
			last = begin
		}
		if silent := time.Since(last); silent > limit {
			return fmt.Errorf("PLEG is not healthy: pleg was last seen active %v ago; threshold is %v", silent.Round(time.Second), limit)
		}
		return nil
	}
}

// execIn runs the commands of probes.
func execIn(runtime *cri.Client) probes.Exec {
	return func(ctx context.Context, id string, command []string, timeout time.Duration) ([]byte, int, error) {
		ctx, cancel := context.WithTimeout(ctx, timeout+10*time.Second)
		defer cancel()
		answer, err := runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: int64((timeout + time.Second - 1) / time.Second)})
		if err != nil {
			return nil, 0, cri.Deadline(err)
		}
		return append(answer.Stdout, answer.Stderr...), int(answer.ExitCode), nil
	}
}

// serviceCache keeps the services, and answers which concern a namespace; false until known.
func serviceCache(api kubernetes.Interface) (*informer.Cache[*corev1.Service], func(string) ([]*corev1.Service, bool)) {
	if api == nil {
		return nil, func(string) ([]*corev1.Service, bool) { return nil, false }
	}
	cache := informer.Of(informer.From(api.CoreV1().Services("")), informer.Options[*corev1.Service]{
		Indexes: map[string]func(*corev1.Service) []string{"namespace": func(s *corev1.Service) []string { return []string{s.Namespace} }},
		Transform: func(s *corev1.Service) *corev1.Service {
			s.ManagedFields, s.Annotations, s.Labels = nil, nil, nil
			return s
		},
	})
	return cache, func(namespace string) ([]*corev1.Service, bool) {
		select {
		case <-cache.Synced():
		default:
			return nil, false
		}
		all := cache.By("namespace", namespace)
		if namespace != metav1.NamespaceDefault {
			all = append(all, cache.By("namespace", metav1.NamespaceDefault)...)
		}
		return all, true
	}
}

// runtimeClass looks up handlers. Classes are few and never change, but asking is rare.
func runtimeClass(api kubernetes.Interface) func(context.Context, string) (string, error) {
	return func(ctx context.Context, name string) (string, error) {
		if api == nil {
			return "", fmt.Errorf("RuntimeClass %q: there is no API server to ask", name)
		}
		class, err := api.NodeV1().RuntimeClasses().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return "", fmt.Errorf("failed to get RuntimeClass %q: %w", name, err)
		}
		return class.Handler, nil
	}
}
