package resources

import (
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/podrules"
	"github.com/keelson/keelson/libs/quota"
)

func pods(cfg Config) Resource[corev1.Pod] {
	kind := func(group, version, kind string) schema.GroupVersionKind {
		return schema.GroupVersionKind{Group: group, Version: version, Kind: kind}
	}
	proxy := []string{"create", "delete", "get", "patch", "update"}
	return Resource[corev1.Pod]{
		Group: "", Version: "v1", Kind: "Pod", Plural: "pods", WholeMeta: true, Short: []string{"po"}, Categories: []string{"all"},
		List:    func() runtime.Object { return &corev1.PodList{} },
		Default: podrules.DefaultPod,
		Main: Part[corev1.Pod]{
			Prepare: preparePod,
			Validate: func(_ *Request, obj, old *corev1.Pod) field.ErrorList {
				if old != nil {
					return podrules.ValidateUpdate(obj, old)
				}
				errs := podrules.ValidateCreate(obj)
				if !cfg.AllowPrivileged {
					errs = append(errs, podrules.ValidatePrivilege(&obj.Spec, field.NewPath("spec"))...)
				}
				return errs
			},
			Warnings: podWarnings,
			Reset:    []string{"status"},
		},
		Status: &Part[corev1.Pod]{
			Prepare:  preparePodStatus,
			Validate: withoutRequest(podrules.ValidateStatus),
			Warnings: func(_ *Request, p, _ *corev1.Pod) []string { return podrules.StatusWarnings(&p.Status) },
			Reset:    []string{"spec", "metadata.deletionTimestamp", "metadata.ownerReferences"},
		},
		Parts: map[string]Part[corev1.Pod]{
			"ephemeralcontainers": *keepMeta(&Part[corev1.Pod]{
				Prepare: func(_ *Request, obj, old *corev1.Pod) {
					added := obj.Spec.EphemeralContainers
					obj.Spec, obj.Status = *old.Spec.DeepCopy(), old.Status
					obj.Spec.EphemeralContainers = added
					podrules.DropClosed(&obj.Spec, &old.Spec)
				},
				Validate: withoutRequest(podrules.ValidateEphemeral),
				Reset:    []string{"status"},
			}),
			"resize": *keepMeta(&Part[corev1.Pod]{
				Prepare:  preparePodResize,
				Validate: withoutRequest(podrules.ValidateResize),
				Reset:    []string{"status"},
			}),
		},
		Subs: []Sub{
			{Name: "attach", Verbs: []string{"create", "get"}, Kind: kind("", "v1", "PodAttachOptions")},
			{Name: "binding", Verbs: []string{"create"}, Kind: kind("", "v1", "Binding")},
			{Name: "eviction", Verbs: []string{"create"}, Kind: kind("policy", "v1", "Eviction")},
			{Name: "exec", Verbs: []string{"create", "get"}, Kind: kind("", "v1", "PodExecOptions")},
			{Name: "log", Verbs: []string{"get"}, Kind: kind("", "v1", "Pod")},
			{Name: "portforward", Verbs: []string{"create", "get"}, Kind: kind("", "v1", "PodPortForwardOptions")},
			{Name: "proxy", Verbs: proxy, Kind: kind("", "v1", "PodProxyOptions")},
		},
		Docs: map[string]string{
			"Ready":           "How many of the containers are ready.",
			"Status":          "What the pod is doing, or what keeps it from running.",
			"Restarts":        "How often containers were restarted, and when one was last.",
			"IP":              corev1.PodStatus{}.SwaggerDoc()["podIP"],
			"Node":            corev1.PodSpec{}.SwaggerDoc()["nodeName"],
			"Nominated Node":  corev1.PodStatus{}.SwaggerDoc()["nominatedNodeName"],
			"Readiness Gates": corev1.PodSpec{}.SwaggerDoc()["readinessGates"],
		},
		Columns: podColumns,
		Conditions: func(p *corev1.Pod) []metav1.TableRowCondition {
			done := metav1.TableRowCondition{Type: metav1.RowCompleted, Status: metav1.ConditionTrue, Reason: string(p.Status.Phase)}
			switch p.Status.Phase {
			case corev1.PodSucceeded:
				done.Message = "The pod has completed successfully."
			case corev1.PodFailed:
				done.Message = "The pod failed."
			default:
				return nil
			}
			return []metav1.TableRowCondition{done}
		},
		Fields: func(p *corev1.Pod) fields.Set {
			ip := p.Status.PodIP
			if len(p.Status.PodIPs) > 0 {
				ip = p.Status.PodIPs[0].IP
			}
			return fields.Set{
				"spec.nodeName": p.Spec.NodeName, "spec.restartPolicy": string(p.Spec.RestartPolicy),
				"spec.schedulerName": p.Spec.SchedulerName, "spec.serviceAccountName": p.Spec.ServiceAccountName,
				"spec.hostNetwork": strconv.FormatBool(p.Spec.HostNetwork), "status.phase": string(p.Status.Phase),
				"status.podIP": ip, "status.nominatedNodeName": p.Status.NominatedNodeName,
			}
		},
		FieldNames: []string{
			"spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork",
			"status.phase", "status.podIP", "status.nominatedNodeName", "status.podIPs", // the last is taken and never has a value
		},
		Grace: podGrace,
	}
}

// podGrace is the pod's own grace period unless the request names one; a pod
// that no node has, or that has ended, goes at once.
func podGrace(_ *Request, p *corev1.Pod, opts *metav1.DeleteOptions) int64 {
	var seconds int64
	switch {
	case opts != nil && opts.GracePeriodSeconds != nil:
		seconds = *opts.GracePeriodSeconds
	case p.Spec.TerminationGracePeriodSeconds != nil:
		seconds = *p.Spec.TerminationGracePeriodSeconds
	}
	if p.Spec.NodeName == "" || quota.Finished(p) {
		return 0
	}
	if seconds < 0 {
		return 1
	}
	return seconds
}

func preparePod(rq *Request, obj, old *corev1.Pod) {
	if old != nil {
		obj.Status = old.Status
		podrules.DropClosed(&obj.Spec, &old.Spec)
		return
	}
	obj.Status = corev1.PodStatus{Phase: corev1.PodPending, QOSClass: quota.QOS(obj)}
	if len(obj.Spec.SchedulingGates) > 0 {
		obj.Status.Conditions = []corev1.PodCondition{{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonSchedulingGated,
			Message:            "Scheduling is blocked due to non-empty scheduling gates",
			LastTransitionTime: metav1.NewTime(rq.Now),
		}}
	}
	podrules.DropClosed(&obj.Spec, nil)
	mergeLabelKeys(obj)
	podrules.AdoptAppArmor(obj, rq.Warn)
}

// mergeLabelKeys writes the pod's own values of matchLabelKeys and
// mismatchLabelKeys into the selectors beside them (KEP-3633, KEP-3243).
func mergeLabelKeys(p *corev1.Pod) {
	merge := func(s *metav1.LabelSelector, keys []string, op metav1.LabelSelectorOperator) {
		if s == nil {
			return
		}
		for _, k := range keys {
			if v, ok := p.Labels[k]; ok {
				s.MatchExpressions = append(s.MatchExpressions, metav1.LabelSelectorRequirement{Key: k, Operator: op, Values: []string{v}})
			}
		}
	}
	for i := range p.Spec.TopologySpreadConstraints {
		c := &p.Spec.TopologySpreadConstraints[i]
		merge(c.LabelSelector, c.MatchLabelKeys, metav1.LabelSelectorOpIn)
	}
	term := func(t *corev1.PodAffinityTerm) {
		merge(t.LabelSelector, t.MatchLabelKeys, metav1.LabelSelectorOpIn)
		merge(t.LabelSelector, t.MismatchLabelKeys, metav1.LabelSelectorOpNotIn)
	}
	terms := func(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm) {
		for i := range required {
			term(&required[i])
		}
		for i := range preferred {
			term(&preferred[i].PodAffinityTerm)
		}
	}
	if a := p.Spec.Affinity; a != nil {
		if a.PodAffinity != nil {
			terms(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution, a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
		}
		if a.PodAntiAffinity != nil {
			terms(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution, a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
		}
	}
}

func preparePodStatus(_ *Request, obj, old *corev1.Pod) {
	obj.Spec = old.Spec
	obj.OwnerReferences = old.OwnerReferences
	obj.DeletionTimestamp = nil // the stored one is put back
	def(&obj.Status.QOSClass, old.Status.QOSClass)
	def(&obj.Status.ObservedGeneration, old.Status.ObservedGeneration)
	seen := map[corev1.PodConditionType][]int64{} // a type may be there more than once
	for _, c := range old.Status.Conditions {
		seen[c.Type] = append(seen[c.Type], c.ObservedGeneration)
	}
	for i := range obj.Status.Conditions {
		c := &obj.Status.Conditions[i]
		if list := seen[c.Type]; len(list) > 0 {
			def(&c.ObservedGeneration, list[0])
			seen[c.Type] = list[1:]
		}
	}
	podrules.DropClosedStatus(&obj.Status, &old.Status)
}

// preparePodResize lets only resources and resize policies through.
func preparePodResize(_ *Request, obj, old *corev1.Pod) {
	asked := obj.Spec
	obj.Spec, obj.Status = *old.Spec.DeepCopy(), old.Status
	take := func(into, from []corev1.Container) []corev1.Container {
		if len(into) != len(from) {
			return from // refused by the rules
		}
		for i := range into {
			into[i].Name = from[i].Name
			into[i].Resources = from[i].Resources
			into[i].ResizePolicy = from[i].ResizePolicy
		}
		return into
	}
	obj.Spec.Containers = take(obj.Spec.Containers, asked.Containers)
	obj.Spec.InitContainers = take(obj.Spec.InitContainers, asked.InitContainers)
	obj.Spec.Resources = asked.Resources
}

func podWarnings(_ *Request, p, old *corev1.Pod) []string {
	if old != nil {
		return nil
	}
	var out []string
	if msgs := validation.IsDNS1123Label(p.Name); len(msgs) > 0 && p.Name != "" {
		out = append(out, fmt.Sprintf("metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: %v", msgs))
	}
	return append(out, podrules.Warnings(&p.ObjectMeta, &p.Spec, nil)...)
}

var podColumns = []Column[corev1.Pod]{
	text("Ready", func(p *corev1.Pod) string { return podLine(p).ready }),
	text("Status", func(p *corev1.Pod) string { return podLine(p).status }),
	{Name: "Restarts", Type: "string", Cell: func(p *corev1.Pod, now time.Time) any {
		l := podLine(p)
		if l.restarts != 0 && !l.lastRestart.IsZero() {
			return fmt.Sprintf("%d (%s ago)", l.restarts, Age(l.lastRestart, now))
		}
		return strconv.Itoa(l.restarts)
	}},
	ageColumn[corev1.Pod](),
	wide(text("IP", func(p *corev1.Pod) string {
		if len(p.Status.PodIPs) > 0 {
			return orNone(p.Status.PodIPs[0].IP)
		}
		return "<none>"
	})),
	wide(text("Node", func(p *corev1.Pod) string { return orNone(p.Spec.NodeName) })),
	wide(text("Nominated Node", func(p *corev1.Pod) string { return orNone(p.Status.NominatedNodeName) })),
	wide(text("Readiness Gates", func(p *corev1.Pod) string {
		if len(p.Spec.ReadinessGates) == 0 {
			return "<none>"
		}
		n := 0
		for _, g := range p.Spec.ReadinessGates {
			if podCondition(p, g.ConditionType) {
				n++
			}
		}
		return fmt.Sprintf("%d/%d", n, len(p.Spec.ReadinessGates))
	})),
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}

func podCondition(p *corev1.Pod, t corev1.PodConditionType) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == t {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// podSummary is what one line of kubectl get pods says of a pod.
type podSummary struct {
	ready, status string
	restarts      int
	lastRestart   metav1.Time
}

// podLine finds the one word that tells most about the pod: what holds up its
// first unfinished init container, else what its containers wait for or ended
// with, else its phase; and Terminating while it is being deleted.
// Source: kubectl 1.36 prints this.
func podLine(p *corev1.Pod) podSummary {
	s := podSummary{status: string(p.Status.Phase)}
	if p.Status.Reason != "" {
		s.status = p.Status.Reason
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonSchedulingGated {
			s.status = corev1.PodReasonSchedulingGated
		}
	}
	sidecars := map[string]bool{}
	total, ready := len(p.Spec.Containers), 0
	for i := range p.Spec.InitContainers {
		if podrules.IsSidecar(&p.Spec.InitContainers[i]) {
			sidecars[p.Spec.InitContainers[i].Name] = true
			total++
		}
	}
	count := func(into *podSummary, c *corev1.ContainerStatus) {
		into.restarts += int(c.RestartCount)
		if t := c.LastTerminationState.Terminated; t != nil && into.lastRestart.Before(&t.FinishedAt) {
			into.lastRestart = t.FinishedAt
		}
	}
	ended := func(t *corev1.ContainerStateTerminated) string {
		switch {
		case t.Reason != "":
			return t.Reason
		case t.Signal != 0:
			return fmt.Sprintf("Signal:%d", t.Signal)
		}
		return fmt.Sprintf("ExitCode:%d", t.ExitCode)
	}
	var lasting podSummary // restarts of sidecars, which count after initialization too
	initializing := false
	for i := range p.Status.InitContainerStatuses {
		c := &p.Status.InitContainerStatuses[i]
		count(&s, c)
		if sidecars[c.Name] {
			count(&lasting, c)
		}
		if t := c.State.Terminated; t != nil && t.ExitCode == 0 {
			continue
		}
		if sidecars[c.Name] && c.Started != nil && *c.Started {
			if c.Ready {
				ready++
			}
			continue
		}
		switch w := c.State.Waiting; {
		case c.State.Terminated != nil:
			s.status = "Init:" + ended(c.State.Terminated)
		case w != nil && w.Reason != "" && w.Reason != "PodInitializing":
			s.status = "Init:" + w.Reason
		default:
			s.status = fmt.Sprintf("Init:%d/%d", i, len(p.Spec.InitContainers))
		}
		initializing = true
		break
	}
	if !initializing || podCondition(p, corev1.PodInitialized) {
		s.restarts, s.lastRestart = lasting.restarts, lasting.lastRestart
		running, failure := false, ""
		for i := len(p.Status.ContainerStatuses) - 1; i >= 0; i-- {
			c := &p.Status.ContainerStatuses[i]
			count(&s, c)
			switch {
			case c.State.Waiting != nil && c.State.Waiting.Reason != "":
				s.status = c.State.Waiting.Reason
			case c.State.Terminated != nil:
				s.status = ended(c.State.Terminated)
				if c.State.Terminated.ExitCode != 0 {
					failure = s.status
				}
			case c.Ready && c.State.Running != nil:
				running = true
				ready++
			}
		}
		if s.status == "Completed" {
			switch {
			case running && podCondition(p, corev1.PodReady):
				s.status = "Running"
			case failure != "":
				s.status = failure
			case running:
				s.status = "NotReady"
			}
		}
	}
	if p.DeletionTimestamp != nil {
		switch {
		case p.Status.Reason == "NodeLost":
			s.status = "Unknown"
		case !quota.Finished(p):
			s.status = "Terminating"
		}
	}
	s.ready = fmt.Sprintf("%d/%d", ready, total)
	return s
}
