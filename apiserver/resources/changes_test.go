package resources

import (
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// What is wrong with one object, or with what an update makes of it: a value "-" removes. Source: what a Kubernetes 1.36 API server answered to the same requests.
func TestFaultsInDepth(t *testing.T) {
	const (
		set = `{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: a}, spec: {serviceName: s, selector: {matchLabels: {a: b}},
			template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}`
		claim = `{apiVersion: resource.k8s.io/v1, kind: ResourceClaim, metadata: {name: a, namespace: d}, spec: {devices: {requests: [{name: r, exactly: {deviceClassName: c}}],
			config: [{opaque: {driver: a.b, parameters: {x: z}}}]}}, status: {allocation: {devices: {results: [{request: r, driver: a.b, pool: p, device: e}]}}}}`
		slice     = `{apiVersion: resource.k8s.io/v1, kind: ResourceSlice, metadata: {name: a}, spec: {driver: a.b, nodeName: o, pool: {name: p, resourceSliceCount: 1}, devices: [{name: e}]}}`
		driver    = `{apiVersion: storage.k8s.io/v1, kind: CSIDriver, metadata: {name: a}}`
		class     = `{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: a}, provisioner: a.b/c, parameters: {a: b}}`
		attached  = `{apiVersion: storage.k8s.io/v1, kind: VolumeAttachment, metadata: {name: a}, spec: {attacher: a.b, nodeName: o, source: {persistentVolumeName: v}}}`
		ranges    = `{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: a}, spec: {cidrs: [10.50.0.0/24]}}`
		service   = `{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}}`
		network   = `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a}, spec: {ingress: [{from: [{podSelector: {}}], ports: [{port: 80, endPort: 90}]}]}}`
		endpoints = `{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a}, addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}]}`
		policy    = `{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicy, metadata: {name: a}, spec: {validations: [{expression: "true"}],
			matchConstraints: {resourceRules: [{apiGroups: [x], apiVersions: [v1], operations: [CREATE], resources: [z]}]}}}`
		scaler = `{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, metadata: {name: a}, spec: {maxReplicas: 3, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: x},
			metrics: [{type: External, external: {metric: {name: m}, target: {type: Value, value: 1}}}]}}`
		flow = `{apiVersion: flowcontrol.apiserver.k8s.io/v1, kind: FlowSchema, metadata: {name: a}, spec: {priorityLevelConfiguration: {name: b}, rules: [{subjects: [{kind: User, user: {name: u}}],
			nonResourceRules: [{verbs: [get], nonResourceURLs: [/x]}]}]}}`
		pod        = `{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: c, image: i}], initContainers: [{name: i, image: i}]}}`
		deployment = `{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}, spec: {selector: {matchLabels: {a: b}},
			template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}`
		node    = `{apiVersion: v1, kind: Node, metadata: {name: a}}`
		ingress = `{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: a}, spec: {rules: [{host: h}]}}`
		job     = `{apiVersion: batch/v1, kind: Job, metadata: {name: a}, spec: {manualSelector: true, selector: {matchLabels: {a: b}},
			template: {metadata: {labels: {a: b}}, spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}`
	)
	for _, c := range []struct {
		object, part string // "update" is a change of the main part
		path, value  string
		want         []string
	}{
		{set, "", "spec.updateStrategy.type", "X", []string{`spec.updateStrategy: Invalid value: {"Type":"X","RollingUpdate":null}: must be 'RollingUpdate' or 'OnDelete'`}},
		{set, "update", "spec.serviceName", "X_", []string{`spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', ` +
			`'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden`}},
		{set, "status", "status", "{replicas: 3, readyReplicas: 1, availableReplicas: 2}", []string{`status.availableReplicas: Invalid value: 2: cannot be greater than status.readyReplicas`}},
		{claim, "update", "spec.devices.requests.0.name", "-", []string{`spec: Invalid value: {"Devices":{"Requests":[{"Name":"","Exactly":{"DeviceClassName":"c","Selectors":null,"AllocationMode":"ExactCount","Count":1,` +
			`"AdminAccess":null,"Tolerations":null,"Capacity":null},"FirstAvailable":null}],"Constraints":null,"Config":[{"Requests":null,"Opaque":{"Driver":"a.b","Parameters":{"x":"z"}}}]}}: field is immutable`}},
		{claim, "", "spec.devices.requests.0.exactly.adminAccess", "true", []string{"spec.devices.requests[0].adminAccess: Forbidden: admin access to devices requires the `resource.kubernetes.io/admin-access: true` label on the containing namespace"}},
		{claim, "status", "status.devices", "[{driver: a.b, pool: p, device: other}]", []string{`status.devices[0]: Invalid value: {"Driver":"a.b","Pool":"p","Device":"other","ShareID":""}: must be an allocated device in the claim`}},
		{claim, "status", "status.devices", "[{driver: a.b, pool: p, device: e, networkData: {ips: [x]}}]",
			[]string{`status.devices[0].networkData.ips[0]: Invalid value: "x": must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)`}},
		{attached, "", "spec.source", "{inlineVolumeSpec: {accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, claimRef: {name: c}, csi: {driver: a.b, volumeHandle: h}, " +
			"persistentVolumeReclaimPolicy: Delete, storageClassName: s, volumeMode: Block, volumeAttributesClassName: ''}}", []string{
			"spec.source.inlineVolumeSpec.claimRef: Forbidden: may not be specified in the context of inline volumes", "spec.source.inlineVolumeSpec.capacity: Forbidden: may not be specified in the context of inline volumes",
			"spec.source.inlineVolumeSpec.persistentVolumeReclaimPolicy: Forbidden: may only be Retain in the context of inline volumes",
			"spec.source.inlineVolumeSpec.storageClassName: Forbidden: may not be specified in the context of inline volumes",
			"spec.source.inlineVolumeSpec.volumeMode: Forbidden: may not specify volumeMode other than Filesystem in the context of inline volumes",
			"spec.source.inlineVolumeSpec.volumeAttributesClassName: Required value: an empty string is disallowed"}},
		{attached, "", "spec.source", "{inlineVolumeSpec: {nodeAffinity: {}, nfs: {server: s, path: /}}}", []string{
			"spec.source.inlineVolumeSpec.csi: Required value: has to be specified in the context of inline volumes", "spec.source.inlineVolumeSpec.accessModes: Required value",
			"spec.source.inlineVolumeSpec.nodeAffinity: Forbidden: may not be specified in the context of inline volumes"}},
		{slice, "", "spec.sharedCounters", "[]", []string{"spec: Invalid value: \"\": only one of `sharedCounters` or `devices` is allowed"}},
		{slice, "", "spec.allNodes", "true", []string{"spec: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set"}},
		{slice, "", "spec.devices.0.nodeName", "x", []string{"spec.devices[0]: Invalid value: null: `nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec"}},
		{slice, "", "spec.devices.0.consumesCounters", "[{}]", []string{"spec.devices[0].consumesCounters[0].counterSet: Required value", "spec.devices[0].consumesCounters[0].counters: Required value"}},
		{slice, "", "spec.devices.0.capacity", "{mem: {value: 1, requestPolicy: {default: 1}}}", []string{"spec.devices[0].capacity[mem].requestPolicy: Forbidden: allowMultipleAllocations must be true"}},
		{slice, "", "spec.devices.0", "{name: e, allowMultipleAllocations: true, capacity: {mem: {value: 4, requestPolicy: {default: 5, validRange: {min: 1, max: 3, step: 2}}}}}",
			[]string{`spec.devices[0].capacity[mem].requestPolicy.validRange.max: Invalid value: "5": default is more than max: 3`}},
		{slice, "", "spec.devices.0.attributes", `{"a b": {int: 1}}`, []string{`spec.devices[0].attributes: Invalid value: "a b": a valid C identifier must start with alphabetic character or '_', ` +
			`followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')`}},
		{driver, "", "spec.serviceAccountTokenInSecrets", "true", []string{"spec.serviceAccountTokenInSecrets: Invalid value: true: serviceAccountTokenInSecrets is set but no tokenRequests are specified"}},
		{driver, "update", "spec.attachRequired", "false", []string{"spec.attachedRequired: Invalid value: false: field is immutable"}},
		{class, "update", "parameters", "{a: c}", []string{`parameters: Invalid value: {"a":"c"}: field is immutable`}},
		{class, "update", "reclaimPolicy", "Retain", []string{`reclaimPolicy: Invalid value: "Retain": field is immutable`}},
		{attached, "status", "status", "{attached: true, attachError: {errorCode: -1}}", []string{"status.attachError.errorCode: Invalid value: -1: must be between 0 and 2147483647, inclusive"}},
		{ranges, "update", "spec.cidrs", "[x]", []string{`spec.cidrs[0]: Invalid value: "x": field is immutable`}},
		{ranges, "update", "spec.cidrs", "-", []string{`spec.cidrs: Invalid value: null: field is immutable`}},
		{service, "update", "spec.clusterIP", "x", []string{`spec.clusterIPs[0]: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`}},
		{service, "", "spec.ipFamilies", "[IPv4, IPv4]", []string{`spec.ipFamilies[1]: Duplicate value: "IPv4"`}},
		{service, "", "spec.ipFamilies", "[X]", []string{`spec.ipFamilies[0]: Unsupported value: "X": supported values: "IPv4", "IPv6"`}},
		{network, "", "spec.ingress.0.from.0.ipBlock", "{cidr: x}", []string{"spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer",
			`spec.ingress[0].from[0].ipBlock.cidr: Invalid value: "x": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)`}},
		{endpoints, "", "endpoints.0.addresses", "['::1']", []string{`endpoints[0].addresses: Invalid value: "::1": must be an IPv4 address`,
			`endpoints[0].addresses[0]: Invalid value: "::1": may not be in the loopback range (127.0.0.0/8, ::1/128)`}},
		{policy, "", "spec.matchConstraints.resourceRules.0.resourceNames", "[a, a/b, a]", []string{`spec.matchConstraints.resourceRules[0].resourceNames[1]: Invalid value: "a/b": may not contain '/'`,
			`spec.matchConstraints.resourceRules[0].resourceNames[2]: Duplicate value: "a"`}},
		{policy, "", "spec.validations.0.message", "' '", []string{`spec.validations[0].message: Invalid value: " ": must be non-empty if specified`}},
		{policy, "status", "status.typeChecking", "{expressionWarnings: [{warning: w, fieldRef: ../x}]}",
			[]string{`status.typeChecking.expressionWarnings[0].fieldRef: Invalid value: "../x": invalid JSONPath: unrecognized character in action: U+002F '/'`}},
		{scaler, "", "spec.metrics.0.pods", "{metric: {name: m}, target: {type: AverageValue}}", []string{"spec.metrics[0].pods: Forbidden: must populate the given metric source only"}},
		{flow, "", "spec.rules.0.subjects.0.group", "{}", []string{"spec.rules[0].subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'"}},
		{pod, "", "spec.initContainers.0.restartPolicyRules", "[{}]", []string{"spec.initContainers[0].restartPolicy: Required value: must specify restartPolicy when restart rules are used"}},
		{pod, "", "spec.affinity", "{nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, preference: {matchExpressions: [{key: a, operator: In, values: ['a b']}]}}]}}", nil},
		{node, "update", "spec.taints", "[{key: a, effect: NoSchedule}, {key: a, effect: NoSchedule}]", []string{
			`metadata.taints[1]: Duplicate value: {"Key":"a","Value":"","Effect":"NoSchedule","TimeAdded":null}: taints must be unique by key and effect pair`,
			`metadata.taints[1]: Duplicate value: {"Key":"a","Value":"","Effect":"NoSchedule","TimeAdded":null}: taints must be unique by key and effect pair`}},
		{pod, "", "spec.hostAliases", "[{ip: 'FD00::1', hostnames: [h]}]", nil},
		{pod, "", "spec.hostAliases", "[{ip: 01.2.3.4, hostnames: [h]}]", []string{`spec.hostAliases[0].ip: Invalid value: "01.2.3.4": must not have leading 0s`}},
		{pod, "status", "status", "{podIPs: [{ip: 1.2.3.4}, {ip: 1.2.3.5}]}", []string{`status.podIPs: Invalid value: [{"IP":"1.2.3.4"},{"IP":"1.2.3.5"}]: may specify no more than one IP for each IP family`}},
		{pod, "", "metadata.annotations", "{scheduler.alpha.kubernetes.io/tolerations: x}",
			[]string{`metadata.annotations: Invalid value: "scheduler.alpha.kubernetes.io/tolerations": invalid character 'x' looking for beginning of value`}},
		{pod, "", "spec.volumes", "[{name: v, configMap: {name: m}, downwardAPI: {items: [{path: p, fieldRef: {fieldPath: metadata.name}}]}}]",
			[]string{"spec.volumes[0].configMap: Forbidden: may not specify more than 1 volume type"}},
		{deployment, "", "spec.template.metadata", "{labels: {a: b}, annotations: {controller.kubernetes.io/pod-deletion-cost: '+5', kubernetes.io/config.mirror: x}}", []string{
			`spec.template.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: "+5": must be a 32bit integer`,
			`spec.template.annotations[kubernetes.io/config.mirror]: Invalid value: "x": must set spec.nodeName if mirror pod annotation is set`}},
		{deployment, "", "spec.template", `{metadata: {labels: {a: b}, annotations: {container.seccomp.security.alpha.kubernetes.io/c: unconfined}},
			spec: {containers: [{name: c, image: i, securityContext: {seccompProfile: {type: RuntimeDefault}}}]}}`,
			[]string{"spec.template.spec.containers[0].securityContext.seccompProfile.type: Forbidden: seccomp type in annotation and field must match"}},
		{service, "", "spec.clusterIP", "'2001:DB8::1'", []string{`spec.clusterIPs[0]: Invalid value: ["2001:DB8::1"]: IPv6 is not configured on this cluster`}},
		{network, "", "spec.ingress.0.from.0", "{ipBlock: {cidr: 10.0.0.1/8, except: [010.1.0.0/16, 10.0.0.0/8]}}", []string{
			`spec.ingress[0].from[0].ipBlock.cidr: Invalid value: "10.0.0.1/8": must not have bits set beyond the prefix length`,
			`spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: "010.1.0.0/16": must not have leading 0s in IP or prefix length`,
			"spec.ingress[0].from[0].ipBlock.except[1]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`"}},
		{endpoints, "", "addressType", "IPv6", []string{`endpoints[0].addresses: Invalid value: "10.0.0.1": must be an IPv6 address`}},
		{strings.Replace(endpoints, "IPv4", "IPv6", 1), "", "endpoints.0.addresses", "['FD00::1']", []string{`endpoints[0].addresses[0]: Invalid value: "FD00::1": must be in canonical form ("fd00::1")`}},
		{ingress, "", "spec.rules.0.host", "01.2.3.4", []string{`spec.rules[0].host: Invalid value: "01.2.3.4": must be a DNS name, not an IP address`}},
		{ranges, "", "spec.cidrs", "[10.0.0.0/8, 010.0.0.0/8]", []string{`spec.cidrs[1]: Invalid value: "010.0.0.0/8": must not have leading 0s in IP or prefix length`,
			`spec.cidrs: Invalid value: ["10.0.0.0/8","010.0.0.0/8"]: may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64`}},
		{job, "update", "spec.template.metadata", "{labels: {a: b, c: d}}", []string{`spec.template: Invalid value: {"labels":{"a":"b","c":"d"},"Spec":{"Volumes":null,`}},
	} {
		read := func(change bool) (*Row, Object) {
			var v map[string]any
			if err := yaml.Unmarshal([]byte(c.object), &v); err != nil {
				t.Fatalf("%s: %v", c.object, err)
			}
			if change {
				var value any
				if err := yaml.Unmarshal([]byte(c.value), &value); err != nil {
					t.Fatalf("%s: %v", c.value, err)
				}
				if c.value == "-" {
					value = nil
				}
				put(v, strings.Split(c.path, "."), value)
			}
			raw, err := yaml.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			return readObject(t, raw)
		}
		row, obj := read(true)
		_, old := read(false)
		part := row.Main
		switch c.part {
		case "":
			old = nil
		case "status":
			part = row.Parts["status"]
		}
		rq := request()
		part.Prepare(rq, obj, old)
		var got []string
		for _, e := range part.Validate(rq, obj, old) {
			got = append(got, e.Error())
		}
		slices.Sort(got)
		want := slices.Sorted(slices.Values(c.want))
		if !slices.EqualFunc(got, want, strings.HasPrefix) {
			t.Errorf("%s %s, %s = %s:\n got %q\nwant %q", row.Kind, c.part, c.path, c.value, got, want)
		}
	}
}

// readObject reads an object, with its defaults.
func readObject(t *testing.T, text []byte) (*Row, Object) {
	t.Helper()
	var kind metav1.TypeMeta
	if err := yaml.Unmarshal(text, &kind); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	for _, row := range Table() {
		if row.GVK() != kind.GroupVersionKind() {
			continue
		}
		obj := row.New()
		if err := yaml.Unmarshal(text, obj); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		row.Default(obj)
		return row, obj
	}
	t.Fatalf("no row for %s", text)
	return nil, nil
}

// Addresses that are not written as they should be are taken with a warning.
func TestWarningsOfAddresses(t *testing.T) {
	for _, c := range []struct{ part, object, want string }{
		{"", `{kind: Endpoints, apiVersion: v1, subsets: [{addresses: [{ip: "FD00::1"}]}]}`,
			`subsets[0].addresses[0].ip: IPv6 address "FD00::1" should be in RFC 5952 canonical format ("fd00::1")`},
		{"", `{kind: EndpointSlice, apiVersion: discovery.k8s.io/v1, addressType: FQDN, endpoints: [{addresses: [h.x, 01.2.3.4]}]}`,
			`endpoints[0].addresses[1]: non-standard IP address "01.2.3.4" is invalid: use "1.2.3.4"`},
		{"", `{kind: NetworkPolicy, apiVersion: networking.k8s.io/v1, spec: {egress: [{to: [{ipBlock: {cidr: "FD00::/8"}}]}]}}`,
			`spec.egress[0].to[0].ipBlock.cidr: IPv6 CIDR value "FD00::/8" should be in RFC 5952 canonical format ("fd00::/8")`},
		{"status", `{kind: Ingress, apiVersion: networking.k8s.io/v1, status: {loadBalancer: {ingress: [{hostname: h}, {ip: "FD00::1"}]}}}`,
			`status.loadBalancer.ingress[1]: IPv6 address "FD00::1" should be in RFC 5952 canonical format ("fd00::1")`},
		{"status", `{kind: Service, apiVersion: v1, status: {loadBalancer: {ingress: [{ip: "FD00::1"}]}}}`,
			`status.loadBalancer.ingress[0]: IPv6 address "FD00::1" should be in RFC 5952 canonical format ("fd00::1")`},
		{"status", `{kind: Pod, apiVersion: v1, status: {podIPs: [{ip: "FD00::1"}]}}`,
			`status.podIPs[0].ip: IPv6 address "FD00::1" should be in RFC 5952 canonical format ("fd00::1")`},
	} {
		row, obj := readObject(t, []byte(c.object))
		part := row.Main
		if c.part != "" {
			part = row.Parts[c.part]
		}
		if got := part.Warnings(request(), obj, obj); !slices.Contains(got, c.want) {
			t.Errorf("%s:\n got %q\nwant %q", c.object, got, c.want)
		}
	}
}

// put sets a value at a path of names and positions.
func put(at any, path []string, value any) {
	for ; ; path = path[1:] {
		switch v := at.(type) {
		case []any:
			if len(path) == 1 {
				v[0] = value
				return
			}
			at = v[0]
		case map[string]any:
			if len(path) == 1 {
				v[path[0]] = value
				return
			}
			if v[path[0]] == nil {
				v[path[0]] = map[string]any{}
			}
			at = v[path[0]]
		}
	}
}

func TestWhatCountsAsAChange(t *testing.T) {
	find := func(kind string) *Row {
		for _, row := range Table() {
			if row.Kind == kind {
				return row
			}
		}
		t.Fatal(kind)
		return nil
	}
	row := find("Deployment")
	old, obj := row.New(), row.New()
	obj.SetAnnotations(map[string]string{"a": "b"})
	if row.Main.Prepare(request(), obj, old); obj.GetGeneration() != 1 {
		t.Errorf("annotations of a deployment: generation %d", obj.GetGeneration())
	}

	row = find("DaemonSet")
	number := func(o Object) string { return o.GetAnnotations()[appsv1.DeprecatedTemplateGeneration] }
	old = row.New()
	old.SetAnnotations(map[string]string{appsv1.DeprecatedTemplateGeneration: "5"})
	if row.Main.Prepare(request(), old, nil); number(old) != "5" {
		t.Errorf("new daemon set: number %s", number(old))
	}
	obj = row.New()
	obj.(*appsv1.DaemonSet).Spec.Template.Spec.SchedulingGroup = &corev1.PodSchedulingGroup{} // of a closed gate
	if row.Main.Prepare(request(), obj, old); number(obj) != "5" {
		t.Errorf("nothing of the template has changed: number %s", number(obj))
	}
	obj.(*appsv1.DaemonSet).Spec.Template.Labels = map[string]string{"a": "b"}
	if row.Main.Prepare(request(), obj, old); number(obj) != "6" {
		t.Errorf("the template has changed: number %s", number(obj))
	}
	obj = row.New()
	if row.Parts["status"].Prepare(request(), obj, old); number(obj) != "5" {
		t.Errorf("status: number %s", number(obj))
	}
}

// Clients of autoscaling/v1 read what it has no field for in its own form.
func TestAnnotationsOfAutoscalers(t *testing.T) {
	var h autoscalingv2.HorizontalPodAutoscaler
	const text = `{spec: {behavior: {scaleDown: {selectPolicy: Max}}, metrics: [
		{type: Resource, resource: {name: memory, target: {type: AverageValue, averageValue: 1Gi}}},
		{type: ContainerResource, containerResource: {name: cpu, container: c, target: {type: Utilization, averageUtilization: 50}}},
		{type: Pods, pods: {metric: {name: m}, target: {type: AverageValue, averageValue: "1"}}},
		{type: Object, object: {describedObject: {kind: Service, name: s}, metric: {name: m}, target: {type: AverageValue, averageValue: "2"}}},
		{type: External, external: {metric: {name: m}, target: {type: Value, value: "3"}}}]},
		status: {currentReplicas: 1, desiredReplicas: 1, currentMetrics: [{type: Resource, resource: {name: cpu, current: {averageUtilization: 5, averageValue: 1m}}},
		{type: ContainerResource, containerResource: {name: cpu, container: c, current: {averageValue: 1m}}}, {type: Pods, pods: {metric: {name: m}, current: {averageValue: "1"}}},
		{type: Object, object: {describedObject: {kind: Service, name: s}, metric: {name: m}, current: {value: "2"}}},
		{type: External, external: {metric: {name: m}, current: {value: "3"}}}]}}`
	if err := yaml.Unmarshal([]byte(text), &h); err != nil {
		t.Fatal(err)
	}
	v1 := hpaToV1(&h)
	for key, want := range map[string]string{
		hpaMetricsAnnotation:  `[{"type":"Resource","resource":{"name":"memory","targetAverageValue":"1Gi"}},{"type":"ContainerResource","containerResource":{"name":"cpu","targetAverageUtilization":50,"container":"c"}},`,
		hpaBehaviorAnnotation: `{"ScaleUp":null,"ScaleDown":{"StabilizationWindowSeconds":null,"SelectPolicy":"Max","Policies":null,"Tolerance":null}}`,
		hpaCurrentAnnotation:  `[{"type":"Resource","resource":{"name":"cpu","currentAverageUtilization":5,"currentAverageValue":"1m"}},`,
	} {
		if got := v1.Annotations[key]; !strings.HasPrefix(got, want) {
			t.Errorf("%s:\n got %s\nwant %s", key, got, want)
		}
	}
	if back := hpaFromV1(v1); !equality.Semantic.DeepEqual(back, &h) {
		t.Errorf("there and back:\n got %+v\nwant %+v", back, &h)
	}
}
