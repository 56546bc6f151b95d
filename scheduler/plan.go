package scheduler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/keelson/keelson/libs/config"
	"github.com/keelson/keelson/scheduler/cache"
	"github.com/keelson/keelson/scheduler/cycle"
	"github.com/keelson/keelson/scheduler/framework"
	"github.com/keelson/keelson/scheduler/plugins"
)

// PlanCommand prints where the pods of a file would go.
var PlanCommand = config.Command{
	Name: "plan", Short: "print where the pods of a YAML file (\"kubectl get nodes,pods,... -A -o yaml\") would go, and why; - reads standard input",
	Run: func(_ context.Context, args []string, out io.Writer) error {
		if len(args) != 1 {
			return config.Usage(errors.New("plan wants one file of objects, or - for standard input"))
		}
		in := io.Reader(os.Stdin)
		if args[0] != "-" {
			f, err := os.Open(args[0])
			if err != nil {
				return config.Usage(err)
			}
			defer f.Close()
			in = f
		}
		text, err := Plan(in, DefaultProfile(), 1)
		if err != nil {
			return config.Usage(fmt.Errorf("%s: %w", args[0], err))
		}
		_, err = io.WriteString(out, text)
		return err
	},
}

// Plan reads objects (YAML documents or lists) and decides about every pod without a node, by priority
// and then in the order of the file. Each decision sees those before it. The same input and seed give the
// same text.
func Plan(in io.Reader, profile Profile, seed uint64) (string, error) {
	objects, err := readObjects(in)
	if err != nil {
		return "", err
	}
	c := cache.New()
	var waiting []*framework.Pod
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.Node:
			c.SetNode(o)
		case *corev1.Namespace:
			c.SetNamespace(o.Name, o.Labels)
		case *corev1.PersistentVolumeClaim:
			c.SetClaim(o)
		case *corev1.PersistentVolume:
			c.SetVolume(o)
		case *storagev1.StorageClass:
			c.SetClass(o)
		case *policyv1.PodDisruptionBudget:
			c.SetPDB(o)
		case *corev1.Service:
			c.SetService(types.NamespacedName{Namespace: o.Namespace, Name: o.Name}, o.Spec.Selector)
		case *appsv1.ReplicaSet:
			if sel, err := metav1.LabelSelectorAsSelector(o.Spec.Selector); err == nil {
				c.SetOwner(o.UID, sel)
			}
		}
	}
	for _, o := range objects {
		p, ok := o.(*corev1.Pod)
		if !ok || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		if p.UID == "" {
			p.UID = types.UID(p.Namespace + "/" + p.Name)
		}
		if p.Spec.NodeName != "" {
			c.SetPod(framework.NewPod(p))
		} else {
			waiting = append(waiting, framework.NewPod(p))
		}
	}
	slices.SortStableFunc(waiting, func(a, b *framework.Pod) int {
		if plugins.PrioritySort(a, b, 0, 0) {
			return -1
		}
		if plugins.PrioritySort(b, a, 0, 0) {
			return 1
		}
		return 0
	})
	var b strings.Builder
	decide := cycle.New(plugins.Table, profile.args())
	for i, p := range waiting {
		if why := gated(p); why != "" {
			fmt.Fprintf(&b, "%s: gated: %s\n", p.Name, why)
			continue
		}
		out := decide.Decide(c.Snapshot(), p, seed+uint64(i))
		switch {
		case out.Node != nil:
			fmt.Fprintf(&b, "%s: %s (%d feasible)\n", p.Name, out.Node.Node.Name, out.Feasible)
			for _, v := range out.Volumes {
				fmt.Fprintf(&b, "  claim %s: %s\n", v.Claim, cmpOr(v.Volume, "to be provisioned for the node"))
			}
			c.Assume(p, out.Node.Node.Name)
			c.ChooseVolumes(out.Volumes)
		default:
			fmt.Fprintf(&b, "%s: %s\n", p.Name, out.Message)
			if pre := out.Preempt; pre != nil {
				fmt.Fprintf(&b, "  preempts on %s:", pre.Node.Node.Name)
				for _, v := range pre.Victims {
					fmt.Fprintf(&b, " %s", v.Name)
				}
				fmt.Fprintln(&b)
				c.Nominate(p, pre.Node.Node.Name)
			}
		}
	}
	return b.String(), nil
}

func gated(p *framework.Pod) string {
	for _, pl := range plugins.Table {
		if pl.Gate != nil {
			if why := pl.Gate(p.Pod); why != "" {
				return why
			}
		}
	}
	return ""
}

func cmpOr(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

func readObjects(in io.Reader) ([]runtime.Object, error) {
	var out []runtime.Object
	documents := utilyaml.NewYAMLOrJSONDecoder(in, 4096)
	for n := 1; ; n++ {
		var raw runtime.RawExtension
		if err := documents.Decode(&raw); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		if len(raw.Raw) == 0 || string(raw.Raw) == "null" {
			continue
		}
		o, _, err := scheme.Codecs.UniversalDeserializer().Decode(raw.Raw, nil, nil)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		if list, ok := o.(*corev1.List); ok {
			for i, item := range list.Items {
				inner, _, err := scheme.Codecs.UniversalDeserializer().Decode(item.Raw, nil, nil)
				if err != nil {
					return nil, fmt.Errorf("document %d, item %d: %w", n, i+1, err)
				}
				out = append(out, inner)
			}
			continue
		}
		out = append(out, o)
	}
}
