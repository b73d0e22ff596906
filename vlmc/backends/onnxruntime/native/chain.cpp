// Operators that follow each other as one node: onnxruntime is asked for threads, and for memory of what
// only they read, once.
#include <cstring>
#include <memory>
#include <sstream>

#include "held.h"
#include "op.h"

namespace ort {

struct Call;

struct Step {
  const std::vector<int>&inputs, &outputs;  // values, as the plan numbers them: see Chain
  Call* call;
};

namespace {

const Operator* operator_of(const std::string& name) {
  for (const auto ops : {linear_ops, attention_ops}) {
    size_t count = 0;
    const Operator* const* all = ops(&count);
    for (size_t i = 0; i < count; ++i)
      if (name == all[i]->GetName(all[i])) return all[i];
  }
  // As onnxruntime says it of a node: the graph is of a newer vlmc.
  throw std::invalid_argument(name + " is not a registered function/op of Chain");
}

std::string text_attribute(const KernelInfo* info, const char* name) {
  size_t size = 0;
  check(api->KernelInfoGetAttribute_string(info->node, name, nullptr, &size));
  std::string text(size, '\0');
  check(api->KernelInfoGetAttribute_string(info->node, name, text.data(), &size));
  text.resize(std::strlen(text.c_str()));
  return text;
}

size_t numbers(const Shape& shape) {
  size_t count = 1;
  for (const int64_t n : shape) count *= static_cast<size_t>(n);
  return count;
}

}  // namespace

struct Call {
  KernelContext* node;
  int inputs, outputs;                // of the node, its workspace left out
  const std::vector<size_t>& starts;  // of each place in the workspace, and its end: numbers of a row
  size_t rows;
  float* room;
  std::vector<Tensor> values;  // outputs, then what is in the places
  const vlmc::Parallel* threads;
};

Tensor input(const Step& step, size_t index) {
  const int at = index < step.inputs.size() ? step.inputs[index] : -1;
  if (at < 0) return {};
  const Call& call = *step.call;
  return at < call.inputs ? input(call.node, at) : call.values[at - call.inputs];
}

void* output(Step& step, size_t index, const Shape& shape) {
  if (index >= step.outputs.size()) throw std::invalid_argument("an output has no place");
  Call& call = *step.call;
  const int at = step.outputs[index] - call.inputs, place = at - call.outputs;
  void* data;
  if (place < 0) {
    data = output(call.node, at, shape);
  } else {
    const std::vector<size_t>& starts = call.starts;
    if (numbers(shape) > (starts[place + 1] - starts[place]) * call.rows)
      throw std::invalid_argument("Chain has no place for " + text(shape));
    data = call.room + starts[place] * call.rows;
  }
  call.values[at] = {data, shape};
  return data;
}

const vlmc::Parallel& threads_of(const Step& step) { return *step.call->threads; }

namespace {

// inputs: any that its steps read. outputs: any of the steps', and a workspace nobody reads. `plan` is
// words: how many inputs and outputs there are, how many places in the workspace, and of each the
// numbers it has for a row of the first step's x; then of each step the operator, the number of its
// inputs, these, the number of its outputs, and these. A value is the number of an input, or behind
// these of an output, or behind these of a place; -1: none. Step i's attributes are named `i.` and
// what its operator calls them.
struct Chain {
  struct Made {
    const Operator* op;
    std::vector<int> inputs, outputs;
    std::unique_ptr<void, void (*)(void*)> kernel;
    vlmc::Weights weights;
    const vlmc::Weights* next = nullptr;  // of the first step behind it that has some
  };

  [[noreturn]] static void refuse() {
    throw std::invalid_argument("Chain does not understand its plan");
  }

  explicit Chain(const KernelInfo* info) : threads(ort::threads(info)) {
    std::istringstream plan(text_attribute(info, "plan"));
    size_t count = 0;
    plan >> inputs >> outputs >> count;
    starts.push_back(0);
    for (size_t i = 0, width; i < count && plan >> width; ++i)
      starts.push_back(starts.back() + (width + 15) / 16 * 16);
    const int values = inputs + outputs + static_cast<int>(count);
    const auto numbers_of = [&] {
      std::vector<int> made;
      size_t size = 0;
      plan >> size;
      for (int value; made.size() < size && plan >> value;) {
        if (value < -1 || value >= values) plan.setstate(std::ios::failbit);
        made.push_back(value);
      }
      if (!plan) refuse();
      return made;
    };
    for (std::string name; plan >> name;) {
      const Operator* op = operator_of(name);
      std::vector<int> from = numbers_of(), to = numbers_of(), given = from;
      for (int& at : given) at = at < inputs ? at : -1;
      for (const int at : to)
        if (at < inputs) refuse();
      const KernelInfo step{info->node, std::to_string(steps.size()) + ".", given.data(),
                            static_cast<int>(given.size())};
      steps.push_back({op, std::move(from), std::move(to), {op->make(&step), op->KernelDestroy}, {}});
      steps.back().weights = op->weights(steps.back().kernel.get());
    }
    for (size_t i = steps.size(); i-- > 1;)
      steps[i - 1].next = steps[i].weights.of[0].at ? &steps[i].weights : steps[i].next;
    if (steps.empty() || steps[0].inputs.empty() || steps[0].inputs[0] < 0 ||
        steps[0].inputs[0] >= inputs)
      refuse();
  }

  void compute(KernelContext* context) const {
    const Tensor x = input(context, static_cast<size_t>(steps[0].inputs[0]));
    Call call{context, inputs, outputs, starts, 0, nullptr, {}, nullptr};
    call.values.resize(outputs + starts.size() - 1);
    call.rows = x.shape.empty() || !x.shape.back() ? 0 : numbers(x.shape) / x.shape.back();
    call.room = static_cast<float*>(
        output(context, outputs, {static_cast<int64_t>(call.rows * starts.back())}));
    Borrowed{context}.run(threads, [&](const vlmc::Parallel& lent) {
      vlmc::hold(lent, [&](const vlmc::Parallel& parallel, vlmc::Held& held) {
        call.threads = &parallel;
        run(&call, held);
      });
    });
  }

  void run(Call* call, vlmc::Held& held) const {
    size_t at = 0;
    try {
      for (; at < steps.size(); ++at) {
        const Made& made = steps[at];
        held.begin(made.weights.of[0].at ? &made.weights : made.next, made.next);
        Step step{made.inputs, made.outputs, call};
        KernelContext context{nullptr, &step};
        made.op->compute(made.kernel.get(), &context);
      }
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument("step " + std::to_string(at) + ", " +
                                  steps[at].op->GetName(steps[at].op) + ": " + error.what());
    }
  }

  size_t threads;
  int inputs = 0, outputs = 0;
  std::vector<size_t> starts;
  std::vector<Made> steps;
};

}  // namespace

const CustomOp* chain_op() {
  static const CustomOp made = [] {
    CustomOp op{};
    complete<Chain>(op);
    op.GetName = [](const CustomOp*) { return "Chain"; };
    op.GetInputType = [](const CustomOp*, size_t) { return kUndefined; };
    op.GetInputTypeCount = [](const CustomOp*) -> size_t { return 1; };
    op.GetOutputType = [](const CustomOp*, size_t) { return kUndefined; };
    op.GetOutputTypeCount = [](const CustomOp*) -> size_t { return 1; };
    op.GetInputCharacteristic = [](const CustomOp*, size_t) { return kVariadic; };
    op.GetOutputCharacteristic = [](const CustomOp*, size_t) { return kVariadic; };
    op.GetVariadicInputMinArity = [](const CustomOp*) { return 1; };
    op.GetVariadicInputHomogeneity = [](const CustomOp*) { return 0; };
    op.GetVariadicOutputMinArity = [](const CustomOp*) { return 1; };
    op.GetVariadicOutputHomogeneity = [](const CustomOp*) { return 0; };
    return op;
  }();
  return &made;
}

}  // namespace ort
