package kubelet

import (
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/kubelet/eviction"
	"github.com/keelson/keelson/kubelet/images"
	"github.com/keelson/keelson/kubelet/node"
	"github.com/keelson/keelson/kubelet/server"
	"github.com/keelson/keelson/kubelet/shutdown"
	"github.com/keelson/keelson/libs/client"
	"github.com/keelson/keelson/libs/config"
)

// Config is all that an administrator decides about a kubelet. Flags have upstream's names.
type Config struct {
	config.Common            `yaml:",inline"`
	client.Config            `yaml:",inline"`
	node.Options             `yaml:",inline"`
	Server                   server.Options `yaml:",inline"`
	RootDir                  string         `yaml:"rootDir" flag:"root-dir" help:"directory of the kubelet's files (volumes, pod directories)"`
	PodLogsDir               string         `yaml:"podLogsDir" flag:"pod-logs-dir" help:"directory of the pods' logs"`
	StaticPodPath            string         `yaml:"staticPodPath" flag:"pod-manifest-path" help:"directory of manifests of static pods; empty: none"`
	ContainerRuntimeEndpoint string         `yaml:"containerRuntimeEndpoint" flag:"container-runtime-endpoint" help:"socket of the CRI runtime, unix:///path"`
	ImageServiceEndpoint     string         `yaml:"imageServiceEndpoint" flag:"image-service-endpoint" help:"socket of the CRI image service; empty: the runtime's"`

	Eviction eviction.Options `yaml:",inline"`
	Shutdown shutdown.Options `yaml:",inline"`
	ImageGC  images.GCOptions `yaml:",inline"`

	ClusterDNS    []string `yaml:"clusterDNS" flag:"cluster-dns" help:"addresses of the cluster's DNS"`
	ClusterDomain string   `yaml:"clusterDomain" flag:"cluster-domain" help:"DNS domain of the cluster"`
	ResolvConf    string   `yaml:"resolvConf" flag:"resolv-conf" help:"the node's resolver configuration, which pods start from"`

	CgroupDriver         string          `yaml:"cgroupDriver" flag:"cgroup-driver" help:"cgroupfs or systemd, as the runtime's; empty asks the runtime, and takes cgroupfs where it does not say"`
	CgroupRoot           string          `yaml:"cgroupRoot" flag:"cgroup-root" help:"cgroup below which the pods' cgroups are made; empty: the machine's root"`
	CPUCFSQuota          bool            `yaml:"cpuCFSQuota" flag:"cpu-cfs-quota" help:"enforce CPU limits"`
	CPUCFSQuotaPeriod    metav1.Duration `yaml:"cpuCFSQuotaPeriod" flag:"cpu-cfs-quota-period" help:"period of CPU limits"`
	EnforceAllocatable   []string        `yaml:"enforceNodeAllocatable" flag:"enforce-node-allocatable" help:"pods: limit all pods together to the capacity without what is reserved; none: do not"`
	SingleProcessOOMKill *bool           `yaml:"singleProcessOOMKill" flag:"single-process-oom-kill" help:"whether the kernel ends only one process of a container that is out of memory, not all of them; false needs cgroup v2, and is the default there"`
	PodPidsLimit         int64           `yaml:"podPidsLimit" flag:"pod-max-pids" help:"processes that a pod may have; -1: no limit"`

	ContainerLogMaxSize  string          `yaml:"containerLogMaxSize" flag:"container-log-max-size" help:"size at which a container's log is rotated, such as 10Mi"`
	ContainerLogMaxFiles int             `yaml:"containerLogMaxFiles" flag:"container-log-max-files" help:"log files kept for a container; at least 2"`
	ContainerLogMonitor  metav1.Duration `yaml:"containerLogMonitorInterval" flag:"container-log-monitor-interval" help:"how often the size of logs is looked at"`

	AllowedUnsafeSysctls []string        `yaml:"allowedUnsafeSysctls" flag:"allowed-unsafe-sysctls" help:"sysctls, or prefixes ending in *, that pods may set beyond the safe ones"`
	SeccompDefault       bool            `yaml:"seccompDefault" flag:"seccomp-default" help:"use the runtime's seccomp profile where a pod names none"`
	MaxParallelPulls     int             `yaml:"maxParallelImagePulls" flag:"max-parallel-image-pulls" help:"images pulled at one time"`
	MaxRestartPeriod     metav1.Duration `yaml:"maxContainerRestartPeriod" flag:"max-container-restart-period" help:"longest delay before a container that keeps ending is started again, and before a pull is tried again"`
	RelistPeriod         metav1.Duration `yaml:"relistPeriod" flag:"relist-period" help:"how often the runtime is asked what has changed where it sends no events"`
}

// Default is a kubelet as upstream sets it up.
func Default() Config {
	return Config{
		Common:                   config.DefaultCommon(),
		Options:                  node.DefaultOptions(),
		Server:                   server.DefaultOptions(),
		Eviction:                 eviction.DefaultOptions(),
		ImageGC:                  images.DefaultGCOptions(),
		RootDir:                  "/var/lib/kubelet",
		PodLogsDir:               "/var/log/pods",
		ContainerRuntimeEndpoint: "unix:///run/containerd/containerd.sock",
		ClusterDomain:            "cluster.local",
		ResolvConf:               "/etc/resolv.conf",
		CPUCFSQuota:              true,
		CPUCFSQuotaPeriod:        metav1.Duration{Duration: 100 * time.Millisecond},
		EnforceAllocatable:       []string{"pods"},
		PodPidsLimit:             -1,
		ContainerLogMaxSize:      "10Mi",
		ContainerLogMaxFiles:     5,
		ContainerLogMonitor:      metav1.Duration{Duration: 10 * time.Second},
		MaxParallelPulls:         4,
		MaxRestartPeriod:         metav1.Duration{Duration: 300 * time.Second},
		RelistPeriod:             metav1.Duration{Duration: time.Second},
	}
}

// Validate reports every fault at once.
func (c Config) Validate() field.ErrorList {
	errs := append(append(c.Config.Validate(), c.Server.Validate()...), c.Shutdown.Validate()...)
	bad := func(name string, value any, why string) {
		errs = append(errs, field.Invalid(field.NewPath(name), value, why))
	}
	for _, dir := range []struct{ name, path string }{{"rootDir", c.RootDir}, {"podLogsDir", c.PodLogsDir}, {"resolvConf", c.ResolvConf}} {
		if dir.path != "" && !filepath.IsAbs(dir.path) {
			bad(dir.name, dir.path, "must be an absolute path")
		}
	}
	if c.RootDir == "" {
		errs = append(errs, field.Required(field.NewPath("rootDir"), ""))
	}
	if c.ContainerRuntimeEndpoint == "" {
		errs = append(errs, field.Required(field.NewPath("containerRuntimeEndpoint"), ""))
	}
	for i, s := range c.ClusterDNS {
		if _, err := netip.ParseAddr(s); err != nil {
			errs = append(errs, field.Invalid(field.NewPath("clusterDNS").Index(i), s, "must be an IP address"))
		}
	}
	if _, err := eviction.Parse(c.Eviction); err != nil {
		bad("evictionHard", c.Eviction.EvictionHard, err.Error())
	}
	if low, high := c.ImageGC.ImageGCLowThresholdPercent, c.ImageGC.ImageGCHighThresholdPercent; low < 0 || high > 100 || low > high {
		bad("imageGCLowThresholdPercent", low, "must be between 0 and imageGCHighThresholdPercent, which is at most 100")
	}
	if !slices.Contains([]string{"", "cgroupfs", "systemd"}, c.CgroupDriver) {
		errs = append(errs, field.NotSupported(field.NewPath("cgroupDriver"), c.CgroupDriver, []string{"cgroupfs", "systemd"}))
	}
	for i, what := range c.EnforceAllocatable {
		path := field.NewPath("enforceNodeAllocatable").Index(i)
		switch {
		case what == "none" && len(c.EnforceAllocatable) > 1:
			errs = append(errs, field.Invalid(path, what, "must stand alone"))
		case what != "pods" && what != "none":
			// system-reserved and kube-reserved are cgroups of the administrator's, limited best where they are made.
			errs = append(errs, field.NotSupported(path, what, []string{"pods", "none"}))
		}
	}
	if q, err := resource.ParseQuantity(c.ContainerLogMaxSize); err != nil || q.Value() < 1 {
		bad("containerLogMaxSize", c.ContainerLogMaxSize, "must be a size such as 10Mi")
	}
	if c.ContainerLogMaxFiles < 2 {
		bad("containerLogMaxFiles", c.ContainerLogMaxFiles, "must be at least 2")
	}
	if p := c.CPUCFSQuotaPeriod.Duration; p < time.Millisecond || p > time.Second {
		bad("cpuCFSQuotaPeriod", p.String(), "must be between 1ms and 1s")
	}
	for _, d := range []struct {
		name  string
		value metav1.Duration
	}{{"containerLogMonitorInterval", c.ContainerLogMonitor}, {"relistPeriod", c.RelistPeriod}} {
		if d.value.Duration < 100*time.Millisecond {
			bad(d.name, d.value.Duration.String(), "must be at least 100ms")
		}
	}
	if d := c.MaxRestartPeriod.Duration; d < time.Second || d > 300*time.Second {
		bad("maxContainerRestartPeriod", d.String(), "must be between 1s and 300s")
	}
	return errs
}
