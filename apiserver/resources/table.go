package resources

import "net/netip"

// Config is what the rules of some kinds depend on. The zero Config is not
// usable; start from DefaultConfig.
type Config struct {
	// ServiceCIDRs are the ranges of cluster addresses: one, or one of each family. The
	// family of the first is the cluster's primary family.
	ServiceCIDRs []netip.Prefix
	// NodePorts is the range that node ports are taken from, both ends included.
	NodePorts PortRange
	// EventTTLSeconds is the life of an event.
	EventTTLSeconds int64
	// AllowPrivileged lets pods ask for privileged containers.
	AllowPrivileged bool
}

// PortRange is an inclusive range of ports.
type PortRange struct{ First, Last int32 }

// DefaultConfig has Kubernetes' usual ranges: 10.96.0.0/16 and 30000-32767.
func DefaultConfig() Config {
	return Config{
		ServiceCIDRs:    []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		NodePorts:       PortRange{30000, 32767},
		EventTTLSeconds: 3600,
		AllowPrivileged: true,
	}
}

// Table returns the built-in rows with the default configuration.
func Table() []*Row { return TableFor(DefaultConfig()) }

// TableFor returns every built-in row, in the order in which discovery lists
// groups and resources. Each call makes new rows: rows of two tables share no state.
func TableFor(cfg Config) []*Row {
	coreEvents := events(cfg).Row()
	hpaV2 := horizontalPodAutoscalers.Row()
	return []*Row{
		// core
		bindings.Row(),
		componentStatuses.Row(),
		configMaps.Row(),
		endpoints.Row(),
		coreEvents,
		limitRanges.Row(),
		namespaces.Row(),
		nodes.Row(),
		persistentVolumeClaims.Row(),
		persistentVolumes.Row(),
		pods(cfg).Row(),
		podTemplates.Row(),
		replicationControllers.Row(),
		resourceQuotas.Row(),
		secrets.Row(),
		serviceAccounts.Row(),
		services(cfg).Row(),
		rangeAllocations(),
		// apps
		controllerRevisions.Row(),
		daemonSets.Row(),
		deployments.Row(),
		replicaSets.Row(),
		statefulSets.Row(),
		// events.k8s.io
		eventsV1(coreEvents).Row(),
		// authentication.k8s.io, authorization.k8s.io
		selfSubjectReviews.Row(),
		tokenReviews.Row(),
		localSubjectAccessReviews.Row(),
		selfSubjectAccessReviews.Row(),
		selfSubjectRulesReviews.Row(),
		subjectAccessReviews.Row(),
		// autoscaling
		hpaV2,
		horizontalPodAutoscalersV1(hpaV2).Row(),
		// batch
		cronJobs.Row(),
		jobs.Row(),
		// certificates.k8s.io
		certificateSigningRequests.Row(),
		// networking.k8s.io
		ingressClasses.Row(),
		ingresses.Row(),
		ipAddresses.Row(),
		networkPolicies.Row(),
		serviceCIDRs.Row(),
		// policy
		podDisruptionBudgets.Row(),
		// rbac.authorization.k8s.io
		clusterRoleBindings.Row(),
		clusterRoles.Row(),
		roleBindings.Row(),
		roles.Row(),
		// storage.k8s.io
		csiDrivers.Row(),
		csiNodes.Row(),
		csiStorageCapacities.Row(),
		storageClasses.Row(),
		volumeAttachments.Row(),
		volumeAttributesClasses.Row(),
		// admissionregistration.k8s.io
		mutatingAdmissionPolicies.Row(),
		mutatingAdmissionPolicyBindings.Row(),
		mutatingWebhookConfigurations.Row(),
		validatingAdmissionPolicies.Row(),
		validatingAdmissionPolicyBindings.Row(),
		validatingWebhookConfigurations.Row(),
		// apiextensions.k8s.io
		customResourceDefinitions.Row(),
		// apiregistration.k8s.io
		apiServices.Row(),
		// scheduling.k8s.io
		priorityClasses.Row(),
		// coordination.k8s.io
		leases.Row(),
		// node.k8s.io
		runtimeClasses.Row(),
		// discovery.k8s.io
		endpointSlices.Row(),
		// resource.k8s.io
		deviceClasses.Row(),
		resourceClaims.Row(),
		resourceClaimTemplates.Row(),
		resourceSlices.Row(),
		// flowcontrol.apiserver.k8s.io
		flowSchemas.Row(),
		priorityLevelConfigurations.Row(),
	}
}
