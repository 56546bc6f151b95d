package resources

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

// Labels of a Job's pods: the old names and the ones with a domain.
const (
	oldControllerUID = "controller-uid"
	oldJobName       = "job-name"
)

var jobs = Resource[batchv1.Job]{
	Group: "batch", Version: "v1", Kind: "Job", Plural: "jobs", WholeMeta: true, Prefix: "jobs", Categories: []string{"all"},
	List: listOf[batchv1.JobList], OrphanByDefault: true,
	OrphanWarning: "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning",
	Default: func(j *batchv1.Job) {
		defaultJobSpec(&j.Spec)
		labelLikeTemplate(j)
	},
	Main: templated(withNameWarning(Part[batchv1.Job]{
		Prepare: func(_ *Request, obj, old *batchv1.Job) {
			if old != nil {
				obj.Status = old.Status
				return
			}
			obj.Status = batchv1.JobStatus{}
			if !valueOr(obj.Spec.ManualSelector, false) {
				selectOwnPods(obj)
				labelLikeTemplate(obj)
			}
		},
		Validate: withoutRequest(validateJob),
		Reset:    []string{"status"},
	}), func(j *batchv1.Job) *corev1.PodTemplateSpec { return &j.Spec.Template }, "spec", "template"),
	Status:     statusPart(func(j *batchv1.Job) *batchv1.JobSpec { return &j.Spec }, validateJobStatus),
	Fields:     func(j *batchv1.Job) fields.Set { return fields.Set{"status.successful": decimal(j.Status.Succeeded)} },
	FieldNames: []string{"status.successful"}, FieldRefusal: "field label %q not supported for Job",
	Docs: map[string]string{
		"Status":      "How far the job has come.",
		"Completions": batchv1.JobStatus{}.SwaggerDoc()["succeeded"],
		"Duration":    "How long the job has taken.",
		"Selector":    batchv1.JobSpec{}.SwaggerDoc()["selector"],
	},
	Columns: append([]Column[batchv1.Job]{
		text("Status", jobStatusText),
		text("Completions", func(j *batchv1.Job) string {
			switch parallel := valueOr(j.Spec.Parallelism, 0); {
			case j.Spec.Completions != nil:
				return fmt.Sprintf("%d/%d", j.Status.Succeeded, *j.Spec.Completions)
			case parallel > 1:
				return fmt.Sprintf("%d/1 of %d", j.Status.Succeeded, parallel)
			}
			return fmt.Sprintf("%d/1", j.Status.Succeeded)
		}),
		{Name: "Duration", Type: "string", Cell: func(j *batchv1.Job, now time.Time) any {
			switch {
			case j.Status.StartTime == nil:
				return ""
			case j.Status.CompletionTime == nil:
				return duration.HumanDuration(now.Sub(j.Status.StartTime.Time))
			}
			return duration.HumanDuration(j.Status.CompletionTime.Sub(j.Status.StartTime.Time))
		}},
		ageColumn[batchv1.Job](),
	}, workloadColumns(func(j *batchv1.Job) *corev1.PodSpec { return &j.Spec.Template.Spec },
		func(j *batchv1.Job) string { return selectorText(j.Spec.Selector) })...),
}

// labelLikeTemplate gives a job without labels those of its pods: the same map, so that
// the labels which the server adds for the pods come to the job too.
func labelLikeTemplate(j *batchv1.Job) {
	if len(j.Labels) == 0 && j.Spec.Template.Labels != nil {
		j.Labels = j.Spec.Template.Labels
	}
}

func jobCondition(j *batchv1.Job, t batchv1.JobConditionType) bool {
	for _, c := range j.Status.Conditions {
		if c.Type == t {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func jobStatusText(j *batchv1.Job) string {
	switch {
	case jobCondition(j, batchv1.JobComplete):
		return "Complete"
	case jobCondition(j, batchv1.JobFailed):
		return "Failed"
	case j.DeletionTimestamp != nil:
		return "Terminating"
	case jobCondition(j, batchv1.JobSuspended):
		return "Suspended"
	case jobCondition(j, batchv1.JobFailureTarget):
		return "FailureTarget"
	case jobCondition(j, batchv1.JobSuccessCriteriaMet):
		return "SuccessCriteriaMet"
	}
	return "Running"
}

func defaultJobSpec(s *batchv1.JobSpec) {
	podrules.DefaultTemplate(&s.Template)
	if s.Completions == nil && s.Parallelism == nil {
		s.Completions = ptr[int32](1)
	}
	defPtr(&s.Parallelism, 1)
	if s.BackoffLimitPerIndex != nil {
		defPtr(&s.BackoffLimit, math.MaxInt32)
	} else {
		defPtr(&s.BackoffLimit, 6)
	}
	defPtr(&s.CompletionMode, batchv1.NonIndexedCompletion)
	defPtr(&s.Suspend, false)
	if s.PodFailurePolicy != nil {
		defPtr(&s.PodReplacementPolicy, batchv1.Failed)
		for i := range s.PodFailurePolicy.Rules {
			for j := range s.PodFailurePolicy.Rules[i].OnPodConditions {
				def(&s.PodFailurePolicy.Rules[i].OnPodConditions[j].Status, corev1.ConditionTrue)
			}
		}
	} else {
		defPtr(&s.PodReplacementPolicy, batchv1.TerminatingOrFailed)
	}
	defPtr(&s.ManualSelector, false)
}

// selectOwnPods gives the template labels with the job's name and uid, and
// selects by the uid, so that no two jobs ever claim the same pods.
func selectOwnPods(j *batchv1.Job) {
	t := &j.Spec.Template
	if t.Labels == nil {
		t.Labels = map[string]string{}
	}
	for k, v := range map[string]string{
		oldJobName: j.Name, batchv1.JobNameLabel: j.Name, oldControllerUID: string(j.UID), batchv1.ControllerUidLabel: string(j.UID),
	} {
		if _, ok := t.Labels[k]; !ok { // a label that says otherwise is refused by the rules
			t.Labels[k] = v
		}
	}
	defPtr(&j.Spec.Selector, metav1.LabelSelector{})
	if j.Spec.Selector.MatchLabels == nil {
		j.Spec.Selector.MatchLabels = map[string]string{}
	}
	if _, ok := j.Spec.Selector.MatchLabels[batchv1.ControllerUidLabel]; !ok {
		j.Spec.Selector.MatchLabels[batchv1.ControllerUidLabel] = string(j.UID)
	}
}

func validateJob(j, old *batchv1.Job) field.ErrorList {
	var f check.Faults
	s, p := &j.Spec, field.NewPath("spec")
	if s.Selector == nil {
		f.Required(p.Child("selector"), "")
	} else {
		f.Add(selectorFaults(s.Selector, p.Child("selector")))
	}
	if sel, err := metav1.LabelSelectorAsSelector(s.Selector); err == nil {
		if !sel.Matches(labels.Set(s.Template.Labels)) {
			f.Invalid(p.Child("template", "metadata", "labels"), s.Template.Labels, "`selector` does not match template `labels`")
		}
		if s.Selector != nil && !valueOr(s.ManualSelector, false) {
			own := labels.Set{oldControllerUID: string(j.UID), oldJobName: j.Name}
			modern := old == nil
			if old != nil {
				_, name := old.Spec.Template.Labels[batchv1.JobNameLabel]
				_, uid := old.Spec.Template.Labels[batchv1.ControllerUidLabel]
				modern = name && uid
			}
			if modern {
				own[batchv1.ControllerUidLabel], own[batchv1.JobNameLabel] = string(j.UID), j.Name
			}
			for k, want := range own {
				at := p.Child("template", "metadata", "labels").Key(k)
				if got, ok := s.Template.Labels[k]; !ok {
					f.Required(at, fmt.Sprintf("must be '%s'", want))
				} else if got != want {
					f.Invalid(at, s.Template.Labels, fmt.Sprintf("must be '%s'", want))
				}
			}
			if !sel.Matches(own) {
				f.Invalid(p.Child("selector"), s.Selector, "`selector` not auto-generated")
			}
		}
	}
	validateJobSpec(&f, s, p)
	if valueOr(s.CompletionMode, "") == batchv1.IndexedCompletion && s.Completions != nil && *s.Completions > 0 {
		if msgs := validation.IsDNS1123Label(fmt.Sprintf("%s-%d", j.Name, *s.Completions-1)); len(msgs) > 0 {
			f.Invalid(field.NewPath("metadata", "name"), j.Name, fmt.Sprintf("will not able to create pod with invalid DNS label: %s-%d", j.Name, *s.Completions-1))
		}
	}
	if old != nil {
		validateJobChange(&f, j, old, p)
	}
	return f.List()
}

// Bounds of indexed jobs. Source: Kubernetes API reference, JobSpec.
const (
	indexedMax     = 100_000
	manyIndexesMax = 10_000
)

func validateJobSpec(f *check.Faults, s *batchv1.JobSpec, p *field.Path) {
	for name, n := range map[string]*int32{
		"parallelism": s.Parallelism, "completions": s.Completions, "backoffLimit": s.BackoffLimit,
		"ttlSecondsAfterFinished": s.TTLSecondsAfterFinished, "backoffLimitPerIndex": s.BackoffLimitPerIndex, "maxFailedIndexes": s.MaxFailedIndexes,
	} {
		check.AtLeastZeroPtr(f, p.Child(name), n)
	}
	check.AtLeastZeroPtr(f, p.Child("activeDeadlineSeconds"), s.ActiveDeadlineSeconds)
	if s.MaxFailedIndexes != nil && s.BackoffLimitPerIndex == nil {
		f.Required(p.Child("backoffLimitPerIndex"), "when maxFailedIndexes is specified")
	}
	if s.ManagedBy != nil {
		f.Add(validation.IsDomainPrefixedPath(p.Child("managedBy"), *s.ManagedBy))
		if len(*s.ManagedBy) > 63 {
			f.TooLong(p.Child("managedBy"), "", 63)
		}
	}
	if m := s.CompletionMode; m != nil {
		check.Listed(f, p.Child("completionMode"), *m, batchv1.NonIndexedCompletion, batchv1.IndexedCompletion)
	}
	if valueOr(s.CompletionMode, "") == batchv1.IndexedCompletion {
		validateIndexed(f, s, p)
	} else {
		for name, n := range map[string]*int32{"backoffLimitPerIndex": s.BackoffLimitPerIndex, "maxFailedIndexes": s.MaxFailedIndexes} {
			if n != nil && valueOr(s.CompletionMode, batchv1.NonIndexedCompletion) == batchv1.NonIndexedCompletion {
				f.Invalid(p.Child(name), *n, "requires indexed completion mode")
			}
		}
		if s.SuccessPolicy != nil {
			f.Invalid(p.Child("successPolicy"), check.Shown(*s.SuccessPolicy), "requires indexed completion mode")
		}
	}
	if r := s.PodReplacementPolicy; r != nil {
		if s.PodFailurePolicy != nil {
			check.Among(f, p.Child("podReplacementPolicy"), *r, batchv1.Failed)
		} else {
			check.Among(f, p.Child("podReplacementPolicy"), *r, batchv1.Failed, batchv1.TerminatingOrFailed)
		}
	}
	validateFailurePolicy(f, s, p.Child("podFailurePolicy", "rules"))
	f.Add(podrules.ValidateTemplate(&s.Template, p.Child("template")))
	at := p.Child("template", "spec", "restartPolicy")
	switch r := s.Template.Spec.RestartPolicy; {
	case r == corev1.RestartPolicyAlways || r == "":
		f.Required(at, fmt.Sprintf("valid values: %q, %q", corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever))
	case r != corev1.RestartPolicyOnFailure && r != corev1.RestartPolicyNever:
		check.Listed(f, at, r, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	case s.PodFailurePolicy != nil && r != corev1.RestartPolicyNever:
		f.Invalid(at, r, fmt.Sprintf("only %q is supported when podFailurePolicy is specified", corev1.RestartPolicyNever))
	}
}

func validateIndexed(f *check.Faults, s *batchv1.JobSpec, p *field.Path) {
	if s.Completions == nil {
		f.Required(p.Child("completions"), "when completion mode is Indexed")
	}
	if s.Parallelism != nil && *s.Parallelism > indexedMax {
		f.Invalid(p.Child("parallelism"), *s.Parallelism, fmt.Sprintf("must be less than or equal to %d when completion mode is Indexed", indexedMax))
	}
	if m := s.MaxFailedIndexes; m != nil {
		if s.Completions != nil && *m > *s.Completions {
			f.Invalid(p.Child("maxFailedIndexes"), *m, "must be less than or equal to completions")
		}
		if *m > indexedMax {
			f.Invalid(p.Child("maxFailedIndexes"), *m, fmt.Sprintf("must be less than or equal to %d", indexedMax))
		}
	}
	if s.Completions != nil && *s.Completions > indexedMax && s.BackoffLimitPerIndex != nil {
		why := fmt.Sprintf("must be less than or equal to %d when completions are above %d and used with backoff limit per index", manyIndexesMax, indexedMax)
		switch m := s.MaxFailedIndexes; {
		case m == nil:
			f.Required(p.Child("maxFailedIndexes"), fmt.Sprintf("must be specified when completions is above %d", indexedMax))
		case *m > manyIndexesMax:
			f.Invalid(p.Child("maxFailedIndexes"), *m, why)
		}
		if s.Parallelism != nil && *s.Parallelism > manyIndexesMax {
			f.Invalid(p.Child("parallelism"), *s.Parallelism, why)
		}
	}
	if s.SuccessPolicy == nil {
		return
	}
	at := p.Child("successPolicy", "rules")
	if n := len(s.SuccessPolicy.Rules); n == 0 {
		f.Required(at, "at least one rules must be specified when the successPolicy is specified")
	} else if n > 20 {
		f.TooMany(at, n, 20)
	}
	for i, r := range s.SuccessPolicy.Rules {
		at := at.Index(i)
		if r.SucceededCount == nil && r.SucceededIndexes == nil {
			f.Required(at, "at least one of succeededCount or succeededIndexes must be specified")
		}
		total := int32(0)
		if r.SucceededIndexes != nil {
			if len(*r.SucceededIndexes) > 64<<10 {
				f.TooLong(at.Child("succeededIndexes"), "", 64<<10)
			}
			n, err := countIndexes(*r.SucceededIndexes, valueOr(s.Completions, 0))
			if err != nil {
				f.Invalid(at.Child("succeededIndexes"), *r.SucceededIndexes, "error parsing succeededIndexes: "+err.Error())
			}
			total = n
		}
		if c := r.SucceededCount; c != nil {
			check.AtLeastZero(f, at.Child("succeededCount"), *c)
			if s.Completions != nil && *c > *s.Completions {
				f.Invalid(at.Child("succeededCount"), *c, fmt.Sprintf("must be less than or equal to %d (the number of specified completions)", *s.Completions))
			}
			if r.SucceededIndexes != nil && *c > total {
				f.Invalid(at.Child("succeededCount"), *c, fmt.Sprintf("must be less than or equal to %d (the number of indexes in the specified succeededIndexes field)", total))
			}
		}
	}
}

// countIndexes parses "1,3-5,7": ascending, below completions.
func countIndexes(list string, completions int32) (int32, error) {
	if list == "" {
		return 0, nil
	}
	var total int32
	last := int32(-1)
	for i, part := range strings.Split(list, ",") {
		from, to, err := indexRange(part, completions)
		if err != nil {
			return 0, err
		}
		if i > 0 && last >= from {
			return 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", last, from)
		}
		total += to - from + 1
		last = to
	}
	return total, nil
}

// indexRange parses "3" or "3-5".
func indexRange(text string, completions int32) (from, to int32, err error) {
	parts := strings.Split(text, "-")
	if len(parts) > 2 {
		return 0, 0, fmt.Errorf("the fragment %q violates the requirement that an index interval can have at most two parts separated by '-'", text)
	}
	var ends [2]int
	for i, part := range parts {
		n, err := strconv.Atoi(part)
		if err != nil {
			return 0, 0, fmt.Errorf("cannot convert string to integer for index: %q", part)
		}
		if n >= int(completions) {
			return 0, 0, fmt.Errorf("too large index: %q", part)
		}
		ends[i] = n
	}
	if len(parts) == 1 {
		ends[1] = ends[0]
	} else if ends[0] >= ends[1] {
		return 0, 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", ends[0], ends[1])
	}
	return int32(ends[0]), int32(ends[1]), nil
}

func validateFailurePolicy(f *check.Faults, s *batchv1.JobSpec, p *field.Path) {
	if s.PodFailurePolicy == nil {
		return
	}
	if n := len(s.PodFailurePolicy.Rules); n > 20 {
		f.TooMany(p, n, 20)
	}
	names := map[string]bool{}
	for _, list := range [][]corev1.Container{s.Template.Spec.Containers, s.Template.Spec.InitContainers} {
		for _, c := range list {
			names[c.Name] = true
		}
	}
	for i, r := range s.PodFailurePolicy.Rules {
		at := p.Index(i)
		oneOfShown(f, at.Child("action"), r.Action, batchv1.PodFailurePolicyActionCount, batchv1.PodFailurePolicyActionFailIndex,
			batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyActionIgnore)
		if r.Action == batchv1.PodFailurePolicyActionFailIndex && s.BackoffLimitPerIndex == nil {
			f.Invalid(at.Child("action"), r.Action, "requires the backoffLimitPerIndex to be set")
		}
		switch {
		case r.OnExitCodes != nil && len(r.OnPodConditions) > 0:
			f.Invalid(at, field.OmitValueType{}, "specifying both OnExitCodes and OnPodConditions is not supported")
		case r.OnExitCodes == nil && len(r.OnPodConditions) == 0:
			f.Invalid(at, field.OmitValueType{}, "specifying one of OnExitCodes and OnPodConditions is required")
		}
		if n := len(r.OnPodConditions); n > 20 {
			f.TooMany(at.Child("onPodConditions"), n, 20)
		}
		for j, c := range r.OnPodConditions {
			f.QualifiedName(at.Child("onPodConditions").Index(j).Child("type"), string(c.Type))
			oneOfShown(f, at.Child("onPodConditions").Index(j).Child("status"), c.Status, corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown)
		}
		if e := r.OnExitCodes; e != nil {
			at := at.Child("onExitCodes")
			oneOfShown(f, at.Child("operator"), e.Operator, batchv1.PodFailurePolicyOnExitCodesOpIn, batchv1.PodFailurePolicyOnExitCodesOpNotIn)
			if e.ContainerName != nil && !names[*e.ContainerName] {
				f.Invalid(at.Child("containerName"), *e.ContainerName, "must be one of the container or initContainer names in the pod template")
			}
			values := at.Child("values")
			if n := len(e.Values); n == 0 {
				f.Invalid(values, e.Values, "at least one value is required")
			} else if n > 255 {
				f.TooMany(values, n, 255)
			}
			seen := check.Seen[int32]{}
			for j, v := range e.Values {
				if v == 0 && e.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn {
					f.Invalid(values.Index(j), v, "must not be 0 for the In operator")
				}
				if seen.Again(v) {
					f.Duplicate(values.Index(j), v)
				}
				if j > 0 && v < e.Values[j-1] {
					f.Invalid(values, e.Values, "must be ordered")
				}
			}
		}
	}
}

// validateJobChange: the template may change in what directs scheduling, and in
// resources, as long as the job is suspended and has no pods.
func validateJobChange(f *check.Faults, j, old *batchv1.Job, p *field.Path) {
	s, o := &j.Spec, &old.Spec
	if valueOr(s.CompletionMode, "") != batchv1.IndexedCompletion {
		f.Same(p.Child("completions"), s.Completions, o.Completions)
	} else if s.Completions != nil && !equality.Semantic.DeepEqual(s.Completions, o.Completions) && *s.Completions != valueOr(s.Parallelism, 0) {
		f.Invalid(p.Child("completions"), *s.Completions, "can only be modified in tandem with spec.parallelism")
	}
	f.Same(p.Child("selector"), s.Selector, o.Selector)
	f.Same(p.Child("completionMode"), s.CompletionMode, o.CompletionMode)
	f.Same(p.Child("podFailurePolicy"), s.PodFailurePolicy, o.PodFailurePolicy)
	f.Same(p.Child("backoffLimitPerIndex"), s.BackoffLimitPerIndex, o.BackoffLimitPerIndex)
	f.Same(p.Child("managedBy"), s.ManagedBy, o.ManagedBy)
	f.Same(p.Child("successPolicy"), s.SuccessPolicy, o.SuccessPolicy)

	was := o.Template.DeepCopy()
	if valueOr(o.Suspend, false) && (old.Status.StartTime == nil || jobCondition(old, batchv1.JobSuspended)) && old.Status.Active == 0 {
		now := &s.Template
		was.Spec.NodeSelector, was.Spec.Tolerations, was.Spec.SchedulingGates = now.Spec.NodeSelector, now.Spec.Tolerations, now.Spec.SchedulingGates
		switch {
		case now.Spec.Affinity == nil && was.Spec.Affinity != nil:
			was.Spec.Affinity.NodeAffinity = nil
			if *was.Spec.Affinity == (corev1.Affinity{}) {
				was.Spec.Affinity = nil
			}
		case now.Spec.Affinity != nil:
			defPtr(&was.Spec.Affinity, corev1.Affinity{})
			was.Spec.Affinity.NodeAffinity = now.Spec.Affinity.NodeAffinity
		}
		copyResources := func(into, from []corev1.Container) {
			for i := range into {
				if i < len(from) && into[i].Name == from[i].Name {
					into[i].Resources = from[i].Resources
				}
			}
		}
		copyResources(was.Spec.Containers, now.Spec.Containers)
		copyResources(was.Spec.InitContainers, now.Spec.InitContainers)
		f.Same(p.Child("template", "spec"), now.Spec, was.Spec)
		return
	}
	f.Same(p.Child("template"), &s.Template, was)
}

// validateJobStatus keeps other controllers than ours (managedBy) from writing what cannot be.
func validateJobStatus(j, old *batchv1.Job) field.ErrorList {
	var f check.Faults
	p, s := field.NewPath("status"), &j.Status
	for name, n := range map[string]int32{"active": s.Active, "succeeded": s.Succeeded, "failed": s.Failed} {
		check.AtLeastZero(&f, p.Child(name), n)
	}
	check.AtLeastZeroPtr(&f, p.Child("ready"), s.Ready)
	check.AtLeastZeroPtr(&f, p.Child("terminating"), s.Terminating)
	uncountedPods(&f, s.UncountedTerminatedPods, p.Child("uncountedTerminatedPods"))
	finishedIndexes(&f, j, old, p)
	conditions := func(why string) { f.Invalid(p.Child("conditions"), field.OmitValueType{}, why) }
	complete, failed := jobCondition(j, batchv1.JobComplete), jobCondition(j, batchv1.JobFailed)
	target, met := jobCondition(j, batchv1.JobFailureTarget), jobCondition(j, batchv1.JobSuccessCriteriaMet)
	if complete && failed {
		conditions("cannot set Complete=True and Failed=true conditions")
	}
	if complete && target {
		conditions("cannot set Complete=True and FailureTarget=true conditions")
	}
	if met && failed {
		conditions("cannot set SuccessCriteriaMet=True and Failed=true conditions")
	}
	if met && target {
		conditions("cannot set SuccessCriteriaMet=True and FailureTarget=true conditions")
	}
	wasComplete, wasFailed := jobCondition(old, batchv1.JobComplete), jobCondition(old, batchv1.JobFailed)
	if failed && !wasFailed && !target {
		conditions("cannot set Failed=True condition without the FailureTarget=true condition")
	}
	if complete && !wasComplete && !met {
		conditions("cannot set Complete=True condition without the SuccessCriteriaMet=true condition")
	}
	if j.Spec.SuccessPolicy != nil && complete && !met {
		conditions("cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True")
	}
	for _, t := range []batchv1.JobConditionType{batchv1.JobFailed, batchv1.JobComplete, batchv1.JobFailureTarget} {
		if jobCondition(old, t) && !jobCondition(j, t) {
			conditions(fmt.Sprintf("cannot disable the terminal %s=True condition", t))
		}
	}
	if jobCondition(old, batchv1.JobSuccessCriteriaMet) && !met {
		conditions("cannot disable the SuccessCriteriaMet=True condition")
	}
	if s.CompletionTime != nil && !complete {
		f.Invalid(p.Child("completionTime"), s.CompletionTime, "cannot set completionTime when there is no Complete=True condition")
	}
	if complete && s.CompletionTime == nil {
		f.Required(p.Child("completionTime"), "completionTime is required for Complete jobs")
	}
	if s.StartTime != nil && s.CompletionTime != nil && s.CompletionTime.Before(s.StartTime) {
		f.Invalid(p.Child("completionTime"), s.CompletionTime, "must be equal to or after `startTime`")
	}
	if s.CompletionTime != nil && old.Status.CompletionTime != nil && !s.CompletionTime.Equal(old.Status.CompletionTime) {
		f.Invalid(p.Child("completionTime"), s.CompletionTime, check.Immutable)
	}
	if (complete || failed) && !(wasComplete || wasFailed) {
		if s.Active > 0 {
			f.Invalid(p.Child("active"), s.Active, "active>0 is invalid for finished job")
		}
		if valueOr(s.Terminating, 0) > 0 {
			f.Invalid(p.Child("terminating"), s.Terminating, "terminating>0 is invalid for finished job")
		}
		if u := s.UncountedTerminatedPods; u != nil && len(u.Failed)+len(u.Succeeded) > 0 {
			f.Invalid(p.Child("uncountedTerminatedPods"), u, "must be empty for finished job")
		}
		if s.StartTime == nil && !(valueOr(j.Spec.Suspend, false) && valueOr(j.Spec.Completions, 1) == 0) {
			f.Required(p.Child("startTime"), "startTime is required for finished job")
		}
	}
	if s.Failed < old.Status.Failed {
		f.Invalid(p.Child("failed"), s.Failed, "cannot decrease the failed counter")
	}
	elastic := valueOr(j.Spec.CompletionMode, "") == batchv1.IndexedCompletion && equality.Semantic.DeepEqual(j.Spec.Completions, j.Spec.Parallelism)
	if s.Succeeded < old.Status.Succeeded && !elastic {
		f.Invalid(p.Child("succeeded"), s.Succeeded, "cannot decrease the succeeded counter")
	}
	if s.Ready != nil && *s.Ready > s.Active && (*s.Ready != valueOr(old.Status.Ready, *s.Ready-1) || s.Active != old.Status.Active) {
		f.Invalid(p.Child("ready"), *s.Ready, "cannot set more ready pods than active")
	}
	return f.List()
}

// uncountedPods: no pod is named twice, in one list or in both.
func uncountedPods(f *check.Faults, u *batchv1.UncountedTerminatedPods, p *field.Path) {
	if u == nil {
		return
	}
	seen := check.Seen[types.UID]{}
	list := func(uids []types.UID, p *field.Path) {
		for i, uid := range uids {
			if uid == "" {
				f.Invalid(p.Index(i), uid, "must not be empty")
			} else if seen.Again(uid) {
				f.Duplicate(p.Index(i), uid)
			}
		}
	}
	list(u.Succeeded, p.Child("succeeded"))
	list(u.Failed, p.Child("failed"))
}

// finishedIndexes checks the lists of an indexed job's indexes when they change:
// after a scale-down they may name indexes beyond the completions for a while.
func finishedIndexes(f *check.Faults, j, old *batchv1.Job, p *field.Path) {
	s, was := &j.Status, &old.Status
	done, failed := s.CompletedIndexes != was.CompletedIndexes, !equality.Semantic.DeepEqual(s.FailedIndexes, was.FailedIndexes)
	at := p.Child("completedIndexes")
	if done && j.Spec.Completions != nil {
		if _, err := countIndexes(s.CompletedIndexes, *j.Spec.Completions); err != nil {
			f.Invalid(at, s.CompletedIndexes, "error parsing completedIndexes: "+err.Error())
		}
	}
	if done && s.CompletedIndexes != "" && valueOr(j.Spec.CompletionMode, "") != batchv1.IndexedCompletion {
		f.Invalid(at, s.CompletedIndexes, "cannot set non-empty completedIndexes when non-indexed completion mode")
	}
	at = p.Child("failedIndexes")
	if s.FailedIndexes == nil {
		return
	}
	if failed && j.Spec.BackoffLimitPerIndex == nil {
		f.Invalid(at, *s.FailedIndexes, "cannot set non-null failedIndexes when backoffLimitPerIndex is null")
	}
	if j.Spec.Completions == nil || !failed && !done {
		return
	}
	if failed && j.Spec.BackoffLimitPerIndex != nil {
		if _, err := countIndexes(*s.FailedIndexes, *j.Spec.Completions); err != nil {
			f.Invalid(at, *s.FailedIndexes, "error parsing failedIndexes: "+err.Error())
		}
	}
	if i, both := commonIndex(s.CompletedIndexes, *s.FailedIndexes, *j.Spec.Completions); both {
		f.Invalid(at, *s.FailedIndexes, fmt.Sprintf("failedIndexes and completedIndexes overlap at index: %d", i))
	}
}

// commonIndex is the first index that is in both lists. What cannot be parsed is reported elsewhere.
func commonIndex(a, b string, completions int32) (int32, bool) {
	if a == "" || b == "" {
		return 0, false
	}
	as, bs := strings.Split(a, ","), strings.Split(b, ",")
	for len(as) > 0 && len(bs) > 0 {
		firstA, lastA, err := indexRange(as[0], completions)
		if err != nil {
			as = as[1:]
			continue
		}
		firstB, lastB, err := indexRange(bs[0], completions)
		switch {
		case err != nil:
			bs = bs[1:]
		case firstA <= lastB && firstB <= lastA:
			return max(firstA, firstB), true
		case firstA <= firstB:
			as = as[1:]
		default:
			bs = bs[1:]
		}
	}
	return 0, false
}

// oneOfShown is check.OneOf, which tells of a missing value what it may be.
func oneOfShown[S ~string](f *check.Faults, p *field.Path, v S, known ...S) {
	if v == "" {
		f.Required(p, fmt.Sprintf("valid values: %q", known))
		return
	}
	check.Among(f, p, v, known...)
}
