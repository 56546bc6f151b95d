package apiserver

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/etcd"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/libs/config"
	"github.com/keelson/keelson/libs/serve"
)

// Config is the whole configuration of the daemon. Flags have upstream's names
// where upstream has the flag.
type Config struct {
	config.Common
	serve.Config `yaml:",inline"`

	AdvertiseAddress string `yaml:"advertiseAddress" flag:"advertise-address" help:"address that the service default/kubernetes leads to; default: the bind address, or that of the default route"`

	// Storage: either an etcd elsewhere, or the embedded one.
	EtcdServers  []string        `yaml:"etcdServers" flag:"etcd-servers" help:"URLs of an external etcd cluster; empty: etcd is embedded"`
	EtcdCAFile   string          `yaml:"etcdCAFile" flag:"etcd-cafile" help:"authority of the external etcd"`
	EtcdCertFile string          `yaml:"etcdCertFile" flag:"etcd-certfile" help:"client certificate for the external etcd"`
	EtcdKeyFile  string          `yaml:"etcdKeyFile" flag:"etcd-keyfile" help:"its key"`
	EtcdPrefix   string          `yaml:"etcdPrefix" flag:"etcd-prefix" help:"what every key begins with"`
	Compaction   metav1.Duration `yaml:"etcdCompactionInterval" flag:"etcd-compaction-interval" help:"history older than this is forgotten; 0 keeps all"`
	Etcd         etcd.Config     `yaml:"etcd"`
	// Encryption at rest.
	EncryptionConfig string `yaml:"encryptionProviderConfig" flag:"encryption-provider-config" help:"file with an EncryptionConfiguration: what is encrypted in etcd, and with which keys"`
	EncryptionReload bool   `yaml:"encryptionProviderConfigAutomaticReload" flag:"encryption-provider-config-automatic-reload" help:"follow changes of that file"`

	// Authentication.
	AnonymousAuth               bool            `yaml:"anonymousAuth" flag:"anonymous-auth" help:"requests without credentials are those of system:anonymous; false refuses them"`
	ServiceAccountKeyFiles      []string        `yaml:"serviceAccountKeyFiles" flag:"service-account-key-file" help:"keys (PEM) that service account tokens may be signed with"`
	ServiceAccountSigningKey    string          `yaml:"serviceAccountSigningKeyFile" flag:"service-account-signing-key-file" help:"private key that new tokens are signed with"`
	ServiceAccountIssuer        string          `yaml:"serviceAccountIssuer" flag:"service-account-issuer" help:"issuer named in tokens"`
	ServiceAccountJWKSURI       string          `yaml:"serviceAccountJWKSURI" flag:"service-account-jwks-uri" help:"where the issuer's keys are said to be; default: this server"`
	ServiceAccountMaxExpiration metav1.Duration `yaml:"serviceAccountMaxTokenExpiration" flag:"service-account-max-token-expiration" help:"longest life of a token; 0: no bound"`
	ServiceAccountExtend        bool            `yaml:"serviceAccountExtendTokenExpiration" flag:"service-account-extend-token-expiration" help:"tokens of pods that ask for an hour live for a year, with a warning after the hour"`
	APIAudiences                []string        `yaml:"apiAudiences" flag:"api-audiences" help:"audiences that tokens for this server have; default: the issuer"`
	BootstrapTokens             bool            `yaml:"enableBootstrapTokenAuth" flag:"enable-bootstrap-token-auth" help:"accept bootstrap tokens (Secrets in kube-system) of joining nodes"`
	RequestHeaderCAFile         string          `yaml:"requestHeaderClientCAFile" flag:"requestheader-client-ca-file" help:"authority of front proxies that say who the caller is"`
	RequestHeaderNames          []string        `yaml:"requestHeaderAllowedNames" flag:"requestheader-allowed-names" help:"common names of front proxies; empty: all that the authority signed"`
	RequestHeaderUsers          []string        `yaml:"requestHeaderUsernameHeaders" flag:"requestheader-username-headers" help:"headers with the user"`
	RequestHeaderUIDs           []string        `yaml:"requestHeaderUIDHeaders" flag:"requestheader-uid-headers" help:"headers with the UID"`
	RequestHeaderGroups         []string        `yaml:"requestHeaderGroupHeaders" flag:"requestheader-group-headers" help:"headers with the groups"`
	RequestHeaderExtra          []string        `yaml:"requestHeaderExtraHeadersPrefix" flag:"requestheader-extra-headers-prefix" help:"prefixes of headers with further attributes"`
	ProxyClientCertFile         string          `yaml:"proxyClientCertFile" flag:"proxy-client-cert-file" help:"certificate shown to aggregated API servers"`
	ProxyClientKeyFile          string          `yaml:"proxyClientKeyFile" flag:"proxy-client-key-file" help:"its key"`

	// Authorization and admission.
	AuthorizationMode       []string `yaml:"authorizationMode" flag:"authorization-mode" help:"in order: Node, RBAC, AlwaysAllow, AlwaysDeny"`
	EnableAdmissionPlugins  []string `yaml:"enableAdmissionPlugins" flag:"enable-admission-plugins" help:"admission plugins to use beside the default ones"`
	DisableAdmissionPlugins []string `yaml:"disableAdmissionPlugins" flag:"disable-admission-plugins" help:"admission plugins not to use"`
	AllowPrivileged         bool     `yaml:"allowPrivileged" flag:"allow-privileged" help:"pods may ask for privileged containers"`

	// Audit.
	AuditPolicyFile     string          `yaml:"auditPolicyFile" flag:"audit-policy-file" help:"file with an audit.k8s.io/v1 Policy; empty: nothing is recorded"`
	AuditLogPath        string          `yaml:"auditLogPath" flag:"audit-log-path" help:"file that audit events are written to, a line each; \"-\": the standard output"`
	AuditLogMaxAge      int             `yaml:"auditLogMaxAge" flag:"audit-log-maxage" help:"days that rotated audit files are kept; 0: for ever"`
	AuditLogMaxBackups  int             `yaml:"auditLogMaxBackup" flag:"audit-log-maxbackup" help:"number of rotated audit files that are kept; 0: all"`
	AuditLogMaxSize     int             `yaml:"auditLogMaxSize" flag:"audit-log-maxsize" help:"megabytes of an audit file before it is rotated"`
	AuditLogCompress    bool            `yaml:"auditLogCompress" flag:"audit-log-compress" help:"compress rotated audit files"`
	AuditLogFormat      string          `yaml:"auditLogFormat" flag:"audit-log-format" help:"\"json\""`
	AuditLogMode        string          `yaml:"auditLogMode" flag:"audit-log-mode" help:"\"blocking\": a request waits for its line, for a second at most; \"blocking-strict\": and is refused if its arrival cannot be written; \"batch\": lines are written behind it"`
	AuditLogBuffer      int             `yaml:"auditLogBatchBufferSize" flag:"audit-log-batch-buffer-size" help:"lines that may wait to be written"`
	AuditWebhookFile    string          `yaml:"auditWebhookConfigFile" flag:"audit-webhook-config-file" help:"kubeconfig of a receiver of audit events"`
	AuditWebhookBackoff metav1.Duration `yaml:"auditWebhookInitialBackoff" flag:"audit-webhook-initial-backoff" help:"pause before the first retry of a call"`
	AuditWebhookBuffer  int             `yaml:"auditWebhookBatchBufferSize" flag:"audit-webhook-batch-buffer-size" help:"events that may wait to be sent"`
	AuditWebhookBatch   int             `yaml:"auditWebhookBatchMaxSize" flag:"audit-webhook-batch-max-size" help:"events in one call"`
	AuditWebhookWait    metav1.Duration `yaml:"auditWebhookBatchMaxWait" flag:"audit-webhook-batch-max-wait" help:"how long an event waits for others to go with"`

	// The cluster.
	ServiceClusterIPRange string          `yaml:"serviceClusterIPRange" flag:"service-cluster-ip-range" help:"range of service addresses; two, joined by a comma, for dual stack"`
	ServiceNodePortRange  string          `yaml:"serviceNodePortRange" flag:"service-node-port-range" help:"range of node ports"`
	ClusterDNS            string          `yaml:"clusterDNS" flag:"cluster-dns" help:"address of the service kube-system/kube-dns; \"none\": it is not made; default: the tenth address of the range"`
	EventTTL              metav1.Duration `yaml:"eventTTL" flag:"event-ttl" help:"how long events are kept"`

	// Kubelets.
	KubeletClientCert   string          `yaml:"kubeletClientCertificate" flag:"kubelet-client-certificate" help:"certificate shown to kubelets"`
	KubeletClientKey    string          `yaml:"kubeletClientKey" flag:"kubelet-client-key" help:"its key"`
	KubeletCAFile       string          `yaml:"kubeletCertificateAuthority" flag:"kubelet-certificate-authority" help:"authority of the kubelets' serving certificates; empty: they are not verified"`
	KubeletAddressTypes []string        `yaml:"kubeletPreferredAddressTypes" flag:"kubelet-preferred-address-types" help:"node addresses to try, in order"`
	KubeletTimeout      metav1.Duration `yaml:"kubeletTimeout" flag:"kubelet-timeout" help:"how long a kubelet may take to accept a connection"`

	// Limits.
	MaxRequestsInFlight         int             `yaml:"maxRequestsInflight" flag:"max-requests-inflight" help:"with --max-mutating-requests-inflight: how many requests are served at the same time; both 0: no bound"`
	MaxMutatingRequestsInFlight int             `yaml:"maxMutatingRequestsInflight" flag:"max-mutating-requests-inflight" help:"is added to --max-requests-inflight"`
	PriorityFairness            bool            `yaml:"enablePriorityAndFairness" flag:"enable-priority-and-fairness" help:"FlowSchemas and PriorityLevelConfigurations decide whose turn it is; false: all but administrators share one level without queues"`
	RequestTimeout              metav1.Duration `yaml:"requestTimeout" flag:"request-timeout" help:"longest time for a request that is not a watch or a stream"`
	ShutdownDelay               metav1.Duration `yaml:"shutdownDelayDuration" flag:"shutdown-delay-duration" help:"how long requests are still accepted after the signal to stop, so that load balancers notice"`
	CacheFormBytes              int64           `yaml:"cacheFormBytes" flag:"cache-form-bytes" help:"memory for JSON and decoded forms of cached objects"`

	// Accepted for scripts that set them; they change nothing here.
	FeatureGates      map[string]string `yaml:"featureGates" flag:"feature-gates" help:"accepted; has no effect"`
	RuntimeConfig     map[string]string `yaml:"runtimeConfig" flag:"runtime-config" help:"accepted; has no effect"`
	StorageMediaType  string            `yaml:"storageMediaType" flag:"storage-media-type" help:"accepted; objects are stored as protobuf"`
	WatchCache        bool              `yaml:"watchCache" flag:"watch-cache" help:"accepted; the cache is always used"`
	EndpointReconcile string            `yaml:"endpointReconcilerType" flag:"endpoint-reconciler-type" help:"\"lease\", or \"none\" to leave the endpoints of default/kubernetes alone"`
	Profiling         bool              `yaml:"profiling" flag:"profiling" help:"serve /debug/pprof"`
}

// Default is a server with an embedded etcd and upstream's usual settings.
func Default() Config {
	return Config{
		Common:     config.DefaultCommon(),
		Config:     serve.Config{BindAddress: "0.0.0.0", Port: 6443},
		EtcdPrefix: "/registry", Etcd: etcd.Default(), Compaction: metav1.Duration{Duration: 5 * time.Minute},
		AnonymousAuth:        true,
		ServiceAccountIssuer: "https://kubernetes.default.svc.cluster.local", ServiceAccountExtend: true,
		BootstrapTokens:    true,
		RequestHeaderUsers: []string{"X-Remote-User"}, RequestHeaderUIDs: []string{"X-Remote-Uid"},
		RequestHeaderGroups: []string{"X-Remote-Group"}, RequestHeaderExtra: []string{"X-Remote-Extra-"},
		AuthorizationMode: []string{"Node", "RBAC"}, AllowPrivileged: true,
		ServiceClusterIPRange: "10.96.0.0/16", ServiceNodePortRange: "30000-32767",
		EventTTL:        metav1.Duration{Duration: time.Hour},
		AuditLogMaxSize: 100, AuditLogFormat: "json", AuditLogMode: "blocking", AuditLogBuffer: 10000,
		AuditWebhookBackoff: metav1.Duration{Duration: 10 * time.Second}, AuditWebhookBuffer: 10000, AuditWebhookBatch: 400,
		AuditWebhookWait:    metav1.Duration{Duration: 30 * time.Second},
		KubeletAddressTypes: []string{"Hostname", "InternalDNS", "InternalIP", "ExternalDNS", "ExternalIP"},
		KubeletTimeout:      metav1.Duration{Duration: 5 * time.Second},
		MaxRequestsInFlight: 400, MaxMutatingRequestsInFlight: 200,
		RequestTimeout:   metav1.Duration{Duration: time.Minute},
		CacheFormBytes:   64 << 20,
		PriorityFairness: true, WatchCache: true, EndpointReconcile: "lease", Profiling: true,
		StorageMediaType: "application/vnd.kubernetes.protobuf",
	}
}

// Validate reports every fault.
func (c Config) Validate() field.ErrorList {
	errs := c.Config.Validate()
	bad := func(name string, value any, detail string) {
		errs = append(errs, field.Invalid(field.NewPath(name), value, detail))
	}
	if c.AdvertiseAddress != "" {
		if a, err := netip.ParseAddr(c.AdvertiseAddress); err != nil {
			bad("advertiseAddress", c.AdvertiseAddress, "must be an IP address")
		} else if a.IsUnspecified() {
			bad("advertiseAddress", c.AdvertiseAddress, "must be an address that others can reach")
		}
	}
	if len(c.EtcdServers) == 0 {
		errs = append(errs, c.Etcd.Validate(field.NewPath("etcd"))...)
	}
	for i, s := range c.EtcdServers {
		if u, err := url.Parse(s); err != nil || u.Host == "" {
			errs = append(errs, field.Invalid(field.NewPath("etcdServers").Index(i), s, "must be a URL like https://host:2379"))
		}
	}
	if (c.EtcdCertFile == "") != (c.EtcdKeyFile == "") {
		bad("etcdKeyFile", c.EtcdKeyFile, "certificate and key must both be set, or neither")
	}
	if c.EncryptionReload && c.EncryptionConfig == "" {
		bad("encryptionProviderConfigAutomaticReload", true, "must be set with --encryption-provider-config")
	}
	if strings.Trim(c.EtcdPrefix, "/") == "" {
		bad("etcdPrefix", c.EtcdPrefix, "must not be empty")
	}
	if _, err := c.serviceCIDRs(); err != nil {
		bad("serviceClusterIPRange", c.ServiceClusterIPRange, err.Error())
	}
	if _, err := c.nodePorts(); err != nil {
		bad("serviceNodePortRange", c.ServiceNodePortRange, err.Error())
	}
	if c.ClusterDNS != "" && c.ClusterDNS != "none" {
		if _, err := netip.ParseAddr(c.ClusterDNS); err != nil {
			bad("clusterDNS", c.ClusterDNS, "must be an IP address or \"none\"")
		}
	}
	if len(c.AuthorizationMode) == 0 {
		errs = append(errs, field.Required(field.NewPath("authorizationMode"), "at least one mode"))
	}
	for i, m := range c.AuthorizationMode {
		if !authorizationModes[m] {
			errs = append(errs, field.NotSupported(field.NewPath("authorizationMode").Index(i), m, []string{"Node", "RBAC", "AlwaysAllow", "AlwaysDeny"}))
		}
	}
	known := map[string]bool{}
	for _, p := range admission.Table(admission.Config{}) {
		known[p.Name] = true
	}
	for name, list := range map[string][]string{"enableAdmissionPlugins": c.EnableAdmissionPlugins, "disableAdmissionPlugins": c.DisableAdmissionPlugins} {
		for i, p := range list {
			if !known[p] && !otherPlugins[p] {
				errs = append(errs, field.Invalid(field.NewPath(name).Index(i), p, "unknown admission plugin"))
			}
		}
	}
	if u, err := url.Parse(c.ServiceAccountIssuer); err != nil || c.ServiceAccountIssuer == "" || (strings.Contains(c.ServiceAccountIssuer, ":") && u.Scheme == "") {
		bad("serviceAccountIssuer", c.ServiceAccountIssuer, "must be a URL or a word")
	}
	if c.MaxRequestsInFlight < 0 {
		bad("maxRequestsInflight", c.MaxRequestsInFlight, "must not be negative")
	}
	if c.MaxMutatingRequestsInFlight < 0 {
		bad("maxMutatingRequestsInflight", c.MaxMutatingRequestsInFlight, "must not be negative")
	}
	for name, d := range map[string]metav1.Duration{"requestTimeout": c.RequestTimeout, "eventTTL": c.EventTTL} {
		if d.Duration < time.Second {
			bad(name, d.Duration.String(), "must be at least a second")
		}
	}
	if (c.KubeletClientCert == "") != (c.KubeletClientKey == "") {
		bad("kubeletClientKey", c.KubeletClientKey, "certificate and key must both be set, or neither")
	}
	for name, n := range map[string]int{
		"auditLogMaxAge": c.AuditLogMaxAge, "auditLogMaxBackup": c.AuditLogMaxBackups, "auditLogMaxSize": c.AuditLogMaxSize,
		"auditLogBatchBufferSize": c.AuditLogBuffer, "auditWebhookBatchBufferSize": c.AuditWebhookBuffer, "auditWebhookBatchMaxSize": c.AuditWebhookBatch,
	} {
		if n < 0 {
			bad(name, n, "must not be negative")
		}
	}
	if c.AuditLogFormat != "json" {
		errs = append(errs, field.NotSupported(field.NewPath("auditLogFormat"), c.AuditLogFormat, []string{"json"}))
	}
	if m := c.AuditLogMode; m != "blocking" && m != "blocking-strict" && m != "batch" {
		errs = append(errs, field.NotSupported(field.NewPath("auditLogMode"), m, []string{"batch", "blocking", "blocking-strict"}))
	}
	if c.EndpointReconcile != "lease" && c.EndpointReconcile != "none" && c.EndpointReconcile != "master-count" {
		errs = append(errs, field.NotSupported(field.NewPath("endpointReconcilerType"), c.EndpointReconcile, []string{"lease", "none"}))
	}
	return errs
}

var authorizationModes = map[string]bool{"Node": true, "RBAC": true, "AlwaysAllow": true, "AlwaysDeny": true}

// otherPlugins are names that upstream knows and that need nothing here: what they
// do is done elsewhere, or not offered.
var otherPlugins = map[string]bool{
	"AlwaysAdmit": true, "AlwaysPullImages": true, "MutatingAdmissionWebhook": true, "ValidatingAdmissionWebhook": true,
	"ValidatingAdmissionPolicy": true, "MutatingAdmissionPolicy": true, "ResourceQuota": true, "NodeRestriction": true,
	"ClusterTrustBundleAttest": true, "PodTopologyLabels": true, "EventRateLimit": true,
}

func (c Config) serviceCIDRs() ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range strings.Split(c.ServiceClusterIPRange, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return nil, err
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%s is an address in %s, not a range", p, p.Masked())
		}
		out = append(out, p)
	}
	if len(out) > 2 || len(out) == 2 && out[0].Addr().Is4() == out[1].Addr().Is4() {
		return nil, fmt.Errorf("one range, or one IPv4 and one IPv6 range")
	}
	return out, nil
}

func (c Config) nodePorts() (resources.PortRange, error) {
	first, last, ok := strings.Cut(c.ServiceNodePortRange, "-")
	a, err1 := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	if !ok || err1 != nil || err2 != nil || a == 0 || a > b {
		return resources.PortRange{}, fmt.Errorf("must be like 30000-32767")
	}
	return resources.PortRange{First: int32(a), Last: int32(b)}, nil
}

// clusterDNS is the address of the DNS service, "" for none.
func (c Config) clusterDNS() string {
	switch c.ClusterDNS {
	case "none":
		return ""
	case "":
		cidrs, err := c.serviceCIDRs()
		if err != nil {
			return ""
		}
		a := cidrs[0].Addr()
		for range 10 {
			a = a.Next()
		}
		if !cidrs[0].Contains(a) {
			return ""
		}
		return a.String()
	}
	return c.ClusterDNS
}
