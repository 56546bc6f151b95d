package runtime

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Settings is the part of the daemon's configuration that controllers read. A
// controller copies out what it needs when it is built.
type Settings struct {
	// Workers overrides every controller's own number of workers; 0 keeps them.
	Workers int `yaml:"workers" flag:"concurrent-syncs" help:"workers of every controller; 0 keeps each controller's own number"`

	ClusterName     string   `yaml:"clusterName" flag:"cluster-name" help:"name of the cluster, used in cloud resources"`
	ClusterCIDR     []string `yaml:"clusterCIDR" flag:"cluster-cidr" help:"pod address ranges of the cluster, at most one for each family"`
	ServiceCIDR     []string `yaml:"serviceCIDR" flag:"service-cluster-ip-range" help:"service address ranges, kept out of node allocations"`
	AllocateCIDRs   bool     `yaml:"allocateNodeCIDRs" flag:"allocate-node-cidrs" help:"give every node a pod address range"`
	NodeMaskIPv4    int      `yaml:"nodeCIDRMaskSizeIPv4" flag:"node-cidr-mask-size-ipv4" help:"prefix length of a node's IPv4 pod range"`
	NodeMaskIPv6    int      `yaml:"nodeCIDRMaskSizeIPv6" flag:"node-cidr-mask-size-ipv6" help:"prefix length of a node's IPv6 pod range"`
	RootCAFile      string   `yaml:"rootCAFile" flag:"root-ca-file" help:"CA bundle published to every namespace as kube-root-ca.crt"`
	SigningCertFile string   `yaml:"clusterSigningCertFile" flag:"cluster-signing-cert-file" help:"CA certificate that signs kubelet and client certificates"`
	SigningKeyFile  string   `yaml:"clusterSigningKeyFile" flag:"cluster-signing-key-file" help:"key of the signing certificate"`

	ServiceAccountKeyFile string `yaml:"serviceAccountPrivateKeyFile" flag:"service-account-private-key-file" help:"private key that signs the tokens kept in Secrets; without it there are none"`

	SigningDuration metav1.Duration `yaml:"clusterSigningDuration" flag:"cluster-signing-duration" help:"longest life of certificates that are signed"`
	// LegacyTokenCleanUp is for how long nobody has used a token that the cluster made by itself until it is taken out
	// of use, and for how long it is kept then.
	LegacyTokenCleanUp metav1.Duration `yaml:"legacyServiceAccountTokenCleanUpPeriod" flag:"legacy-service-account-token-clean-up-period" help:"a token in a Secret made by the cluster itself that was not used for this long is taken out of use, and deleted after as long again"`
	NodeGrace          metav1.Duration `yaml:"nodeMonitorGracePeriod" flag:"node-monitor-grace-period" help:"a node that was silent for this long is marked unknown"`
	NodeStartupGrace   metav1.Duration `yaml:"nodeStartupGracePeriod" flag:"node-startup-grace-period" help:"a node that has said nothing yet, since it was made or this process began, is marked unknown after this long"`
	NodePeriod         metav1.Duration `yaml:"nodeMonitorPeriod" flag:"node-monitor-period" help:"how often node health is looked at"`
	NodeEvictionRate   float64         `yaml:"nodeEvictionRate" flag:"node-eviction-rate" help:"nodes a second whose pods are evicted while a zone is healthy"`
	PodGCThreshold     int             `yaml:"terminatedPodGCThreshold" flag:"terminated-pod-gc-threshold" help:"ended pods that are kept before the oldest are deleted; 0 turns it off"`
	ConcurrentGC       int             `yaml:"concurrentGCSyncs" flag:"concurrent-gc-syncs" help:"workers of the garbage collector"`
}

// DefaultSettings has upstream's defaults.
//
// Source: kube-controller-manager 1.36 command line reference.
func DefaultSettings() Settings {
	return Settings{
		ClusterName: "kubernetes", NodeMaskIPv4: 24, NodeMaskIPv6: 64,
		SigningDuration:    metav1.Duration{Duration: 365 * 24 * time.Hour},
		LegacyTokenCleanUp: metav1.Duration{Duration: 365 * 24 * time.Hour},
		NodeGrace:          metav1.Duration{Duration: 50 * time.Second},
		NodeStartupGrace:   metav1.Duration{Duration: time.Minute},
		NodePeriod:         metav1.Duration{Duration: 5 * time.Second},
		NodeEvictionRate:   0.1, PodGCThreshold: 12500, ConcurrentGC: 20,
	}
}

// Validate reports every fault.
func (s Settings) Validate(at *field.Path) field.ErrorList {
	var all field.ErrorList
	if s.Workers < 0 {
		all = append(all, field.Invalid(at.Child("workers"), s.Workers, "must not be negative"))
	}
	if s.LegacyTokenCleanUp.Duration <= 0 {
		all = append(all, field.Invalid(at.Child("legacyServiceAccountTokenCleanUpPeriod"), s.LegacyTokenCleanUp.Duration.String(), "must be greater than zero"))
	}
	if s.NodeMaskIPv4 < 1 || s.NodeMaskIPv4 > 32 {
		all = append(all, field.Invalid(at.Child("nodeCIDRMaskSizeIPv4"), s.NodeMaskIPv4, "must be from 1 to 32"))
	}
	if s.NodeMaskIPv6 < 1 || s.NodeMaskIPv6 > 128 {
		all = append(all, field.Invalid(at.Child("nodeCIDRMaskSizeIPv6"), s.NodeMaskIPv6, "must be from 1 to 128"))
	}
	if s.AllocateCIDRs && len(s.ClusterCIDR) == 0 {
		all = append(all, field.Required(at.Child("clusterCIDR"), "is needed to allocate node ranges (--allocate-node-cidrs)"))
	}
	if (s.SigningCertFile == "") != (s.SigningKeyFile == "") {
		all = append(all, field.Required(at.Child("clusterSigningCertFile"), "certificate and key are given together or not at all"))
	}
	return all
}
